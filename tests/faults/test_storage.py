"""Full disks, quotas and folders that cannot be written: one line, nothing half done, goes on."""

import errno
import os
import re
import subprocess
import sys

import pytest

from qalign_jax.checkpoints.card import UNFINISHED
from qalign_jax.faults import storage
from tests.faults import small_disk
from tests.files import write_jsonl

# Writes what runs write, each on a disk that has too little space at first.
WRITERS = """
import shutil
from qalign_jax import files
from qalign_jax.checkpoints.model import Model, save_model
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.convert import convert
from qalign_jax.data import packing
from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.evaluation.records import AnswerFile
from qalign_jax.generate import Request, generate
from qalign_jax.models.params import random_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.metrics import MetricWriter

source, model_file = {"name": "jsonl", "path": str(work / "own.jsonl")}, sys.argv[3]
tokenizer = load_tokenizer(model_file)
config, execution = preset("tiny", vocab_size=420)
params = random_params(config, make_mesh("single"), 0)
save_model(work / "model", Model(config, execution, params, tokenizer, "short"))
write_record(work / "model", Record({}, {}))
convert(work / "model", work / "hugging_face")
(work / "prompts.jsonl").write_text('{"prompt": "1 + 1 ="}\\n' * 60)
answers = [{"id": str(number), "output": "of one answer " * 20} for number in range(60)]

def metrics():
    path = disk / "metrics.jsonl"
    last = path.read_text().count("\\n") if path.exists() else 0
    writer = MetricWriter(disk, last)
    for step in range(last + 1, 200):
        writer.write({"step": step, "loss": 1 / step})
    writer.close()

def answer():
    file = AnswerFile(disk / "de.jsonl", {})
    file.read()
    file.open()
    for row in answers[len(file.answers):]:
        file.add(row)
    file.close([row["id"] for row in answers])

def write(name, call, check=lambda: None, step=8192):
    found[name] = grow(call, step) | {"content": check()}
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()

def lines(name):
    return [json.loads(line) for line in (disk / name).read_text().splitlines()]

def packed():
    return packing.build({"own": source}, tokenizer, "short", 64, disk / "cache", 0)

def exported():
    return [(each / "hugging_face" / "model.safetensors").read_bytes() for each in (disk, work)]

found, request = {}, Request(str(work / "model"), max_new_tokens=4)
texts = ["1 + 1 = 2. "] * 9
write("results.json", lambda: files.write_json(disk / "stage" / "results.json", answers))
write("tokenizer.model", lambda: train_sentencepiece(texts, 270, disk / "tokenizer.model"))
write("datasets", packed, lambda: packed().stats["examples"])
write("metrics.jsonl", metrics, lambda: [row["step"] for row in lines("metrics.jsonl")])
write("de.jsonl", answer, lambda: [row["id"] for row in lines("de.jsonl")[1:]])
write("imported", lambda: convert(work / "hugging_face", disk / "imported"), step=1 << 18)
write(
    "hugging_face", lambda: convert(work / "model", disk / "hugging_face"),
    lambda: len(set(exported())), step=1 << 18,
)
write(
    "output.jsonl", lambda: generate(request, work / "prompts.jsonl", disk / "output.jsonl"),
    lambda: len(lines("output.jsonl")),
)
print(json.dumps(found))
"""
# Of what a test's disk holds, what may stay there when there was not enough space for the rest.
STAY = {
    "results.json": {"stage"},
    "datasets": {"cache", "cache/datasets", "cache/packed", "cache/datasets/jsonl"},
    "metrics.jsonl": {"metrics.jsonl", "tensorboard"},
    "de.jsonl": {"de.jsonl"},
    "output.jsonl": {"output.jsonl", "output.jsonl.partial"},
    "imported": {"imported", f"imported/{UNFINISHED}"},
    "hugging_face": {"hugging_face", f"hugging_face/{UNFINISHED}"},
}
CONTENT = {
    "datasets": 99,
    "metrics.jsonl": list(range(1, 200)),
    "de.jsonl": [str(number) for number in range(60)],
    "hugging_face": 1,
    "output.jsonl": 60,
}
WRITTEN = (*STAY, "tokenizer.model")


@pytest.fixture(scope="module")
def written(tmp_path_factory, bubblewrap, model_file):
    work = tmp_path_factory.mktemp("work")
    rows = [{"instruction": f"{i} + 1?", "response": f"The answer is {i + 1}."} for i in range(99)]
    write_jsonl(work / "own.jsonl", rows)
    disk = tmp_path_factory.mktemp("disk")
    return disk, small_disk.run(WRITERS, disk, work, 8, model_file)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_on_a_full_disk_a_line_names_what_is_not_written_and_the_same_call_goes_on(name, written):
    disk, found = written
    messages, content = found[name]["messages"], found[name]["content"]
    assert messages and content == CONTENT.get(name)
    end = (
        "could not be written: No space left on device. What was finished before is whole; start "
        "the same command again when there is space or it answers"
    )
    for message in messages:
        assert message.startswith(f"{disk}/") and message.endswith(end)
    assert any(name in message for message in messages)
    for left in found[name]["left"]:
        # a data set that is whole is kept, though the rows packed from it are not; threads of
        # Orbax may write behind the error
        more = {path for path in left if "tfevents" not in path and "/jsonl/" not in path}
        more = {path for path in more if not path.startswith("imported/checkpoints")}
        assert more <= STAY.get(name, set())
        assert not [path for path in left if "/." in f"/{path}"]


# Trains four steps, saving each, on a disk that has too little space at first.
TRAINING = """
import jax, numpy as np
from qalign_jax import logs
from qalign_jax.checkpoints.state import Checkpoints
from qalign_jax.data import packing
from qalign_jax.data.batches import Batches
from qalign_jax.data.tokenizer import load_tokenizer
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import random_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.loop import train
from qalign_jax.training.optimizer import OptimizerConfig, Schedule
from qalign_jax.training.step import abstract_state, init_state, make_train_step

logs.show()
source, tokenizer = {"name": "jsonl", "path": str(work / "own.jsonl")}, load_tokenizer(sys.argv[3])
batches = Batches(packing.build({"own": source}, tokenizer, "short", 64, work / "cache", 0), 2, 0)
config, execution = preset("tiny", vocab_size=420)
mesh, optimizer = make_mesh("single"), OptimizerConfig()
step = make_train_step(Llama(config, execution), optimizer, mesh)
wanted = abstract_state(config, optimizer, mesh).parts()

def start(folder):
    checkpoints = Checkpoints(folder, every=1)
    try:
        first, parts = checkpoints.restore(wanted) or (0, {})
        firsts.append(first)
        state = init_state(config, optimizer, mesh, random_params(config, mesh, 0))
        state = state.from_parts(parts) if parts else state
        return train(
            state, step, batches, Schedule(1e-3, 4), config=config, mesh=mesh,
            checkpoints=checkpoints, stage_dir=folder, name="full",
        )
    finally:
        checkpoints.close()

firsts, ended = [], []
whole = start(work / "whole").params
size = sum(path.stat().st_size for path in (work / "whole").rglob("*"))
found = grow(lambda: ended.append(start(disk / "stage")), size // 2)
rows = (disk / "stage" / "metrics.jsonl").read_text().splitlines()
found["steps"] = [json.loads(row)["step"] for row in rows]
found["firsts"] = firsts[1:]
same = jax.tree.map(lambda one, other: (np.asarray(one) == other).all(), whole, ended[0].params)
found["same"] = bool(jax.tree.all(same))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_checkpoint_for_which_there_is_no_space_leaves_the_ones_before_and_nothing_of_itself(
    tmp_path, bubblewrap, model_file
):
    for name in ("disk", "work"):
        (tmp_path / name).mkdir()
    rows = [{"instruction": f"{i} + 1?", "response": f"The answer is {i + 1}."} for i in range(9)]
    write_jsonl(tmp_path / "work" / "own.jsonl", rows)
    found = small_disk.run(TRAINING, tmp_path / "disk", tmp_path / "work", 48, model_file)
    assert found["same"] and found["steps"] == [1, 2, 3, 4]
    assert found["firsts"] == sorted(found["firsts"]) and set(found["firsts"]) >= {0, 1, 2}
    for message, left, first in zip(
        found["messages"], found["left"], found["firsts"][1:], strict=True
    ):
        assert re.match(rf"{tmp_path}/disk/stage\S* could not be written: No space left", message)
        saved = {path.split("/")[2] for path in left if path.startswith("stage/checkpoints/")}
        assert all(name.isdigit() for name in saved), saved  # a half has another name
        assert first == max(map(int, saved), default=0)  # the newest was restored


# A command that has no space for its first checkpoint, twice, and then has.
COMMAND = """
(work / "recipe.py").write_text(sys.argv[3])
command = [sys.executable, "-m", "qalign_jax.run", f"--config={work}/recipe.py"]
command += [f"--workdir={disk}/run", "--stages=vocabulary,base"]
ended = []
for space in (0, 1 << 20, None):
    fill()
    if space is None:
        os.unlink(disk / "ballast")
    else:
        os.truncate(disk / "ballast", os.path.getsize(disk / "ballast") - space)
    done = subprocess.run(command, capture_output=True, text=True)
    ended.append((done.returncode, done.stderr, there()))
print(json.dumps(ended))
"""


@pytest.mark.slow
def test_a_command_without_space_ends_with_one_line_and_74_and_goes_on_when_there_is(
    tmp_path, bubblewrap
):
    for name in ("disk", "work"):
        (tmp_path / name).mkdir()
    recipe = (
        "import pathlib\n"
        "from tests.recipe.test_recipe import make_config\n"
        "def get_config():\n"
        f"    config = make_config(pathlib.Path({str(tmp_path)!r}), mesh='single')\n"
        "    config.base.steps, config.base.save_every = 4, 2\n"
        "    return config\n"
    )
    full, half, done = small_disk.run(COMMAND, tmp_path / "disk", tmp_path / "work", 16, recipe)
    for (status, stderr, left), what in ((full, "run.lock"), (half, "base/checkpoints")):
        lines = stderr.splitlines()
        assert status == 74
        assert lines[-1].startswith(f"error: {tmp_path}/disk/run/{what} could not be written: No")
        assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines[:-1])
        assert not [path for path in left if "tmp" in path or "/." in path]
    assert done[0] == 0 and "run/base/checkpoints/4" in done[2]


def test_an_error_is_one_of_storage_by_its_number_or_by_words_of_the_system_behind_it():
    def failing(error, cause=None):
        try:
            raise error from cause
        except type(error) as raised:
            return storage.failure(raised)

    full = OSError(errno.ENOSPC, "any words")
    assert failing(full) == "No space left on device"
    assert failing(OSError(errno.EDQUOT, "")) == "Disk quota exceeded"
    assert failing(
        ValueError("RESOURCE_EXHAUSTED: x: No space left on device [os_error_code='28']")
    )
    assert failing(OSError("Not enough disk space. Needed: 3 MiB")) == "No space left on device"
    assert failing(RuntimeError("a thread died"), full) == "No space left on device"
    for other in (FileNotFoundError(errno.ENOENT, "x"), ValueError("RESOURCE_EXHAUSTED: of HBM")):
        assert failing(other) == ""
    circle = ValueError("in a circle")
    circle.__context__ = circle.__cause__ = circle
    assert storage.failure(circle) == ""


WRITE = """
import sys
from qalign_jax import files
from qalign_jax.checkpoints.card import UNFINISHED
from qalign_jax.faults import storage
if sys.argv[2:]:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for call in (
    lambda: storage.check_folder(sys.argv[1] + "/new", "workdir"),
    lambda: files.write_text(sys.argv[1] + "/new/file", "x" * 9999),
):
    try:
        call()
    except (ValueError, storage.StorageFailed) as error:
        print(type(error).__name__, error)
"""


def said(*command):
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    (line,) = said(sys.executable, "-c", WRITE, tmp_path, "limited")
    assert line.startswith(f"StorageFailed {tmp_path}/new/file could not be written: File too")
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_that_may_not_be_written_is_named_before_and_when_it_is(tmp_path, bubblewrap):
    python = (sys.executable, "-c", WRITE, tmp_path)
    tmp_path.chmod(0o555)
    everything = ("bwrap", "--dev-bind", "/", "/")
    refused = "cannot be written; name another folder, or give this user the right to write there"
    lines = said(*everything, "--unshare-user", "--uid", "1000", *python)
    assert lines[0] == f"ValueError workdir={tmp_path}/new: {tmp_path} {refused}"
    assert lines[1].startswith(f"ValueError {tmp_path}/new: Permission denied; name another")
    lines = said(*everything, "--ro-bind", tmp_path, tmp_path, *python)
    assert lines[0] == f"ValueError workdir={tmp_path}/new: {tmp_path} {refused}"
    assert lines[1].startswith(f"ValueError {tmp_path}/new: Read-only file system; name")


@pytest.mark.parametrize("key", ["workdir", "cache_dir"])
def test_a_workdir_or_cache_that_is_a_file_or_lies_in_one_is_a_mistake(key, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match=f"{key}={path}: {file} is not a folder; name another"):
            storage.check_folder(path, key)
        assert file.read_bytes() == b""
    storage.check_folder(tmp_path / "new" / "below", key)
    assert list(tmp_path.iterdir()) == [file]
