"""On object storage that fails, lags and repeats, a run is that in a local folder, or ends."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import jax
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp

from qalign_jax import files
from qalign_jax.checkpoints import hf_config
from qalign_jax.checkpoints.card import UNFINISHED, stage_and_step
from qalign_jax.checkpoints.model import Model, load_model, save_model
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.convert import convert
from qalign_jax.faults import lock
from qalign_jax.faults.storage import StorageFailed, writing
from qalign_jax.generate import Request, generate
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.params import init_params
from qalign_jax.prepare import prepare
from qalign_jax.recipe.recipe import run
from qalign_jax.reporting import page
from qalign_jax.training import metrics
from qalign_jax.training.metrics import MetricWriter
from tests.faults import storage_recipe
from tests.faults.gcs import KINDS

# clients of the stores leave the sockets of connections that were cut to the garbage collection
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
# what differs between two runs of the same: times, speeds, and the digests of files with times
TIMES = re.compile(r'"(seconds|tokens_per_second|mfu)": [^,}]+|"after": \{[^}]*\}')


@pytest.fixture
def quick(monkeypatch):
    """gcsfs' pauses, which are a second and more, a hundredth of that."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *more: sleep(seconds / 100, *more))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def local(cache_dir, tmp_path_factory):
    """The workdir of an undisturbed run of the recipe."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    run(storage_recipe.get_config(cache_dir), workdir)
    return workdir


def outputs(found):
    """The files of a run, name -> content without times; weights and the page have tests of
    their own."""
    return {
        name: TIMES.sub("", content.decode())
        for name, content in found.items()
        if name.endswith((".json", ".jsonl")) and "/checkpoints/" not in name
    }


def read(folder):
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def assert_same_run(workdir, bucket_folder, storage):
    theirs, ours = outputs(read(workdir)), outputs(storage.files(bucket_folder))
    assert ours.keys() == theirs.keys() and len(ours) > 8
    for name, content in theirs.items():
        assert ours[name] == content, name
    params = [load_model(f"{place}/tuned").params for place in (workdir, f"gs://{bucket_folder}")]
    for a, b in zip(*map(jax.tree.leaves, params), strict=True):
        assert (a == b).all()


def run_until_done(config, workdir):
    """Runs as often as storage failures end it; TensorStore takes some lost answers for errors."""
    for _ in range(4):
        with contextlib.suppress(StorageFailed), writing(workdir):
            return run(config, workdir)
    return run(config, workdir)


@pytest.mark.slow
def test_a_run_on_storage_that_fails_is_the_run_in_a_local_folder(storage, local, cache_dir, quick):
    with storage.failing(0.1, seed=1):
        config = storage_recipe.get_config(cache_dir)
        assert prepare(config, "gs://bucket/run")["stages"].keys() == {"tuned"}
        outcome = run_until_done(config, "gs://bucket/run")
        page.write("gs://bucket/run")
        again = run(config, "gs://bucket/run")
    assert set(outcome["stages"].values()) == {"done"} and again == outcome
    assert storage.faults.total() > 50 and storage.faults.keys() >= {"429", "503", "lost"}
    assert_same_run(local, "bucket/run", storage)
    found = storage.files("bucket/run")
    assert b"</html>" in found["report.html"] and "run.lock" not in found
    steps = {name.split("/")[2] for name in found if name.startswith("tuned/checkpoints/")}
    assert "6" in steps


# python -m qalign_jax.run, whose second start need not wait long for a sign of the first
RUN = """
import runpy
from qalign_jax.faults import lock
lock.HEARTBEAT_S = 0.2
runpy.run_module("qalign_jax.run", run_name="__main__", alter_sys=True)
"""


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )


@pytest.fixture
def recipe_file(tmp_path, cache_dir):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from tests.faults import storage_recipe\n\n"
        f"def get_config():\n    return storage_recipe.get_config({cache_dir!r})\n"
    )
    return f"--config={path}"


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_saves_goes_on_from_the_step_before(
    storage, local, recipe_file
):
    arguments = (recipe_file, "--workdir=gs://bucket/run")
    process = command(*arguments)

    def kill(name):
        if name.endswith("tuned/checkpoints/4/commit_success.txt"):
            process.kill()
            raise ConnectionError  # the object is not stored

    storage.on_upload = kill
    process.communicate(timeout=300)
    assert process.returncode == -9
    names = storage.files("bucket/run/tuned/checkpoints")
    assert "2/commit_success.txt" in names and "4/commit_success.txt" not in names
    assert "4/_CHECKPOINT_METADATA" in names and "run.lock" in storage.files("bucket/run")
    assert stage_and_step(epath.Path("gs://bucket/run/tuned"))[1] == 2
    with pytest.raises(ValueError, match="no checkpoint is complete"):
        load_model("gs://bucket/run/tuned/checkpoints/4")
    storage.on_upload = lambda name: None
    with storage.failing(0.02, seed=3, kinds=("429", "503", "slow", "cut download")):
        process = command(*arguments)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "gs://bucket/run/run.lock: taken over from process" in stderr
    assert json.loads(stdout.splitlines()[-1])["stages"]["evaluation"] == "done"
    assert_same_run(local, "bucket/run", storage)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "object"])
def test_of_two_runs_at_once_the_second_is_refused_and_the_first_unharmed(
    place, storage, local, recipe_file, tmp_path
):
    workdir = "gs://bucket/run" if place == "object" else str(tmp_path / "run")
    arguments = (recipe_file, f"--workdir={workdir}", "--stages=vocabulary,tuned")
    processes = [command(*arguments) for _ in range(2)]
    ends = [process.communicate(timeout=300) for process in processes]
    statuses = [process.returncode for process in processes]
    assert sorted(statuses) == [0, 2], ends
    first, second = (statuses.index(status) for status in (0, 2))
    [line] = [line for line in ends[second][1].splitlines() if line.startswith("error:")]
    owner = f"process {processes[first].pid} on {os.uname().nodename} (since 20"
    assert line.startswith(f"error: {workdir}/run.lock is held by {owner}")
    assert line.endswith("wait for it to end, or take another --workdir")
    found = storage.files("bucket/run") if place == "object" else read(tmp_path / "run")
    ours, theirs = outputs(found), outputs(read(local))
    assert {"tuned/done.json", "tuned/metrics.jsonl"} < ours.keys()
    assert all(ours[name] == theirs[name] for name in ours)


SMALL = LlamaConfig(
    vocab_size=420, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, d_ff=64, head_size=16,
    max_length=64,
)  # fmt: skip


@pytest.fixture
def stage(tmp_path, tokenizer):
    """A local stage's folder with random weights."""
    params = jax.jit(init_params, static_argnums=0)(SMALL, jax.random.key(0))
    save_model(tmp_path / "stage", Model(SMALL, Execution(), params, tokenizer, "short"))
    write_record(tmp_path / "stage", Record({}, {"init": "random"}))
    return tmp_path / "stage"


def copy(folder, target):
    for name, content in read(folder).items():
        (epath.Path(target) / name).write_bytes(content)


@pytest.mark.slow
def test_a_conversion_to_storage_that_fails_and_back_is_exact(storage, stage, tmp_path, quick):
    with storage.failing(0.1, seed=5):
        convert(stage, "gs://bucket/hub", shard_bytes=100_000)
        convert("gs://bucket/hub", "gs://bucket/ours")
        convert("gs://bucket/ours", tmp_path / "back", shard_bytes=100_000)
    assert storage.faults.total() > 10
    convert(stage, tmp_path / "hub", shard_bytes=100_000)
    hub = read(tmp_path / "hub")
    assert sum(name.endswith(".safetensors") for name in hub) > 1
    without_card = {name: content for name, content in hub.items() if name != "README.md"}
    for found in (storage.files("bucket/hub"), read(tmp_path / "back")):
        assert found.keys() == hub.keys()
        assert without_card.items() <= found.items()


def test_half_a_conversion_on_storage_is_no_model_and_is_done_anew(
    storage, stage, quick, monkeypatch
):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hf_config, "config_json", stop)  # the last file written
        with pytest.raises(KeyboardInterrupt):
            convert(stage, "gs://bucket/hub")
    names = storage.files("bucket/hub").keys()
    assert {UNFINISHED, "model.safetensors"} < names and "config.json" not in names
    assert "conversion.lock" not in names
    with pytest.raises(ValueError, match="its conversion has not ended"):
        load_model("gs://bucket/hub")
    convert(stage, "gs://bucket/hub")
    assert UNFINISHED not in storage.files("bucket/hub")
    assert load_model("gs://bucket/hub").config == load_model(stage).config


def test_a_conversion_that_storage_refuses_leaves_a_mark_alone(storage, stage, quick, monkeypatch):
    def refuse(name):
        if name.endswith("hub/config.json"):
            raise ConnectionError

    storage.on_upload = refuse
    monkeypatch.setattr(files, "RETRY_S", 0.1)
    with pytest.raises(StorageFailed, match=r"hub/config\.json could not be written: "):
        convert(stage, "gs://bucket/hub")
    assert storage.files("bucket/hub") == {UNFINISHED: b""}


@pytest.mark.slow
def test_generation_with_all_on_storage_that_fails_is_the_local_one(
    storage, stage, tmp_path, quick
):
    rows = [{"prompt": "Tom has"}, {"question": "wie viele"}, {"prompt": "多少?"}]
    copy(stage, "gs://bucket/stage")
    for folder in (tmp_path, epath.Path("gs://bucket")):
        files.write_json_lines(folder / "prompts.jsonl", rows)
        request = Request(checkpoint=str(folder / "stage"), max_new_tokens=8, dtype="float32")
        with storage.failing(0.1, seed=7):
            generate(request, folder / "prompts.jsonl", folder / "out" / "answers.jsonl")
    assert storage.faults.total() > 5
    expected = (tmp_path / "out" / "answers.jsonl").read_bytes()
    assert storage.files("bucket/out") == {"answers.jsonl": expected}


@pytest.mark.parametrize("place", ["file", "object"])
def test_two_that_generate_one_output_are_one_and_a_refusal(place, storage, stage, tmp_path):
    output = "gs://bucket/answers.jsonl" if place == "object" else str(tmp_path / "answers.jsonl")
    files.write_json_lines(tmp_path / "prompts.jsonl", [{"prompt": "Tom has"}])
    request = Request(checkpoint=str(stage), max_new_tokens=2)
    held = r"answers\.jsonl\.lock is held by process \d+ on .*; name another --output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "HEARTBEAT_S", 0.1)
        with lock.hold(f"{output}.lock", ""), pytest.raises(ValueError, match=held):
            generate(request, tmp_path / "prompts.jsonl", output)
    assert not epath.Path(output).exists()
    assert generate(request, tmp_path / "prompts.jsonl", output)["prompts"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_sees_the_old_content_or_the_new_under_each_fault(kind, storage, quick):
    contents = [bytes([number]) * 700_000 for number in range(4)]
    path = epath.Path("gs://bucket/file")
    files.write_bytes(path, contents[0])
    seen, ends = set(), threading.Event()

    def watch():
        while not ends.is_set():
            seen.add(storage.objects["bucket", "file"].content)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with storage.failing(0.4, seed=1, kinds=(kind,)):
        for content in contents:
            files.write_bytes(path, content)
            assert path.read_bytes() == content
    ends.set()
    watcher.join()
    seen.add(storage.objects["bucket", "file"].content)
    assert storage.faults[kind] > 1 and seen == set(contents)


def test_a_write_outlives_an_outage_and_gives_up_with_one_line(storage, quick, monkeypatch, caplog):
    storage.down = True
    timer = threading.Timer(1.5, lambda: setattr(storage, "down", False))
    timer.start()
    files.write_text("gs://bucket/file", "text")
    timer.join()
    assert storage.files("bucket") == {"file": b"text"}
    retries = [line for line in caplog.messages if "again in" in line]
    assert re.fullmatch(
        r"gs://bucket/file: the object store fails \(status 503, 503\); again in \d s", retries[0]
    )
    storage.down = True
    monkeypatch.setattr(files, "RETRY_S", 0.5)
    with pytest.raises(OSError) as raised:
        files.write_text("gs://bucket/file", "other")
    line = "gs://bucket/file could not be written: the object store fails (status 503, 503). "
    assert str(raised.value).startswith(line + "What was finished before is whole; start the same")
    storage.down = False
    assert storage.files("bucket") == {"file": b"text"}


def test_what_cannot_succeed_is_not_tried_again(storage, monkeypatch):
    monkeypatch.setattr(storage, "fault", lambda request: "403")
    told = r"gs://bucket/file could not be written: the object store fails \(Forbidden: .* 403\)\."
    with pytest.raises(StorageFailed, match=told):
        files.write_text("gs://bucket/file", "text")
    assert storage.faults.total() < 3


def test_errors_of_all_clients_become_one_line(storage, monkeypatch):
    tree = {"params": {"a": jax.numpy.arange(8.0)}}
    refused = "params/ocdbt"

    def fault(request):
        return "403" if refused in request.replace("%2F", "/") else ""

    monkeypatch.setattr(storage, "fault", fault)
    with pytest.raises(StorageFailed, match=r"the object store fails \(PERMISSION_DENIED: .*gs://"):
        with writing("gs://bucket/checkpoint"):
            ocp.save_checkpointables("gs://bucket/checkpoint", tree)
    refused = ""
    with pytest.raises(StorageFailed, match=r"the object store fails \(403 .*\)\. What"):
        with lock.hold("gs://bucket/run.lock", ""):
            pass


def test_a_checkpoint_without_its_mark_is_not_complete(storage, stage):
    copy(stage, "gs://bucket/stage")
    assert stage_and_step(epath.Path("gs://bucket/stage"))[1] == 0
    for name in storage.files("bucket/stage/checkpoints/0"):
        if name != "commit_success.txt":
            storage.put("bucket", f"stage/checkpoints/1/{name}", b"half", "text/plain")
    assert stage_and_step(epath.Path("gs://bucket/stage"))[1] == 0
    storage.remove("bucket", "stage/checkpoints/0/commit_success.txt")
    for path in ("stage", "stage/checkpoints/1"):
        with pytest.raises(ValueError, match="no checkpoint is complete yet"):
            load_model(f"gs://bucket/{path}")


def test_what_another_host_writes_is_seen_after_a_listing(storage):
    path = epath.Path("gs://bucket/run")
    storage.put("bucket", "run/1/file", b"", "text/plain")
    assert [each.name for each in path.iterdir()] == ["1"] and not (path / "2").exists()
    storage.put("bucket", "run/2/file", b"", "text/plain")
    assert [each.name for each in path.iterdir()] == ["1", "2"] and (path / "2/file").exists()


def test_a_listing_that_comes_late_gives_no_half_checkpoint(storage, stage):
    copy(stage, "gs://bucket/stage")
    params = load_model(stage).params
    root = epath.Path("gs://bucket/stage/checkpoints")
    ocp.save_checkpointables(root / "1", {"params": params})
    storage.stale = 1  # from before the mark of step 1
    assert stage_and_step(epath.Path("gs://bucket/stage"))[1] in (0, 1)
    assert storage.stale == 0
    assert stage_and_step(epath.Path("gs://bucket/stage"))[1] == 1


def test_metrics_and_events_survive_answers_that_are_lost(storage, quick, monkeypatch):
    monkeypatch.setattr(metrics, "_FLUSH_S", 0.0)
    with storage.failing(0.5, seed=2, kinds=("lost", "503")):
        writer = MetricWriter("gs://bucket/stage", 0)
        for step in range(1, 5):
            writer.write({"step": step, "loss": 1.0 / step})
            writer.flush()
        writer.close()
    assert storage.faults["lost"] > 1
    found = storage.files("bucket/stage")
    rows = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    assert rows == [{"step": step, "loss": 1.0 / step} for step in range(1, 5)]
    [(name, events)] = found.items()
    assert name.startswith("tensorboard/events.out.tfevents.")
    assert events.count(b"loss") == 4
