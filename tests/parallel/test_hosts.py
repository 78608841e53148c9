"""Several processes compute what one computes; missing processes are named."""

import inspect
import json
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from qalign_jax.checkpoints.model import load_model
from qalign_jax.parallel import hosts
from qalign_jax.parallel.barrier import HOST
from qalign_jax.parallel.mesh import make_mesh

STEPS = 6
MESH = "fsdp:4,tensor:2"


def coordinator():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start(*command, devices=4, **environment):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"XLA_FLAGS": flags} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes, timeout=60):
    """Exit status, stdout and stderr of each process."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *output) for process, output in zip(processes, outputs, strict=True)
    ]


def logged(stderr):
    """The info lines, without their time."""
    return re.findall(r"^\d\d:\d\d:\d\d (.*)", stderr, re.MULTILINE)


def errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of three runs of one recipe on one mesh of eight devices, and their outputs.

    `two` runs in two processes of four devices each. `joined` runs in one process of eight devices
    in its own cluster, so that gloo sums as in `two`. `one` runs in an ordinary process.
    """
    tmp = tmp_path_factory.mktemp("hosts")
    recipe = tmp / "recipe.py"
    recipe.write_text(
        "import pathlib\n"
        "from tests.recipe.test_recipe import make_config\n"
        "def get_config():\n"
        f"    config = make_config(pathlib.Path({str(tmp)!r}), mesh={MESH!r})\n"
        f"    config.base.steps = config.tuned.steps = {STEPS}\n"
        "    config.tuned.adapter.rank, config.tuned.weights_dtype = 4, 'int8'\n"
        "    return config\n"
    )

    def run(workdir, *arguments, devices=8):
        command = ("-m", "qalign_jax.run", f"--config={recipe}", f"--workdir={tmp / workdir}")
        # XLA splits the sums of a product over its threads, by default one for each core or device:
        # an equal number gives an equal order
        return start(*command, *arguments, devices=devices, PJRT_NPROC="8")

    first, second = coordinator(), coordinator()
    ended = finish(
        *(
            run("two", f"--coordinator={first}", "--processes=2", f"--process={i}", devices=4)
            for i in range(2)
        ),
        run("joined", f"--coordinator={second}"),
        run("one", "--stages=vocabulary,base"),
        timeout=400,
    )
    for status, _, stderr in ended:
        assert status == 0, stderr
    names = ("two, process 0", "two, process 1", "joined", "one")
    return tmp, first, dict(zip(names, ended, strict=True))


def rows(workdir, stage):
    text = (workdir / stage / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_two_processes_train_and_evaluate_to_the_bits_of_one(runs):
    """The one process sums in the same order, with gloo: floating-point sums of three or more terms
    depend on their order, and an ordinary process sums in another one.
    """
    tmp, _, ended = runs
    names = ("two, process 0", "joined")
    two, one = (json.loads(ended[name][1].splitlines()[-1]) for name in names)
    assert two["stages"] == one["stages"] and set(one["stages"].values()) == {"done"}
    assert two["systems"] == one["systems"]
    for stage in ("base", "tuned"):
        two, one = rows(tmp / "two", stage), rows(tmp / "joined", stage)
        assert len(two) == len(one) == STEPS
        for name in ("step", "learning_rate", "loss", "grad_norm", "trained_tokens", "packing"):
            assert [row[name] for row in two] == [row[name] for row in one], name
        params = [load_model(tmp / workdir / stage).params for workdir in ("two", "joined")]
        assert len(jax.tree.leaves(params[0])) == 12
        jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.slow
def test_an_ordinary_process_differs_from_two_by_rounding_alone(runs):
    tmp, _, _ = runs
    for two, one in zip(rows(tmp / "two", "base"), rows(tmp / "one", "base"), strict=True):
        for name in ("loss", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-5)
        assert two["trained_tokens"] == one["trained_tokens"]
        assert two["packing"] == one["packing"] > 0.8


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_restores_on_one_device_and_on_eight(runs):
    tmp, _, _ = runs
    alone = load_model(tmp / "two" / "base").params
    spread = load_model(tmp / "two" / "base", mesh=make_mesh(MESH)).params
    jax.tree.map(np.testing.assert_array_equal, alone, spread)
    query = spread["layers"]["attention"]["query"]
    layers, model, heads, size = query.shape
    assert {shard.data.shape for shard in query.addressable_shards} == {
        (layers, model // 4, heads // 2, size)
    }
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(spread))
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(alone))


@pytest.mark.slow
def test_every_process_says_who_it_is_and_the_first_alone_says_the_rest(runs):
    tmp, address, ended = runs
    for process in range(2):
        _, stdout, stderr = ended[f"two, process {process}"]
        name = f"process {process} of 2 on {HOST}"
        announced = [f"{name}: joining {address}", f"{name}: 4 of 8 devices, cpu"]
        if process == 0:
            assert logged(stderr)[:2] == announced
            assert "base: begins" in logged(stderr)
        else:
            assert logged(stderr) == announced
        report = json.loads(stdout.splitlines()[-1])["report"]
        assert report == (None if process else str(tmp / "two" / "report.html"))


ALONE = """
import json, sys, types
import numpy as np
from qalign_jax.data.batches import Batches
from qalign_jax.data.packing import ARRAYS
from qalign_jax.parallel import barrier, hosts
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.loop import _load
from qalign_jax.training.metrics import MetricWriter

class Watched(Batches):
    def read(self, row_ids):
        read.extend(row_ids.tolist())
        return super().read(row_ids)

address, process, mesh, folder = sys.argv[1:]
hosts.initialize(address, 2, int(process))
read, rows = [], np.arange(40)[:, None].repeat(16, axis=1)
packed = types.SimpleNamespace(num_rows=40, length=16, **dict.fromkeys(ARRAYS, rows))
ids, batch = _load(Watched(packed, 8, seed=3), 2, make_mesh(mesh))
held = {int(row[0]) for shard in batch["tokens"].addressable_shards for row in shard.data}
writer = MetricWriter(folder, 0)
writer.write({"step": 1, "loss": 0.5})
writer.close()
print(json.dumps({"batch": ids.tolist(), "read": read, "held": sorted(held)}))
barrier.leave()
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The rows of a batch that each of two processes reads, and its folder for metrics."""
    address, tmp = coordinator(), tmp_path_factory.mktemp("alone")
    folders = [tmp / "0", tmp / "1"]  # one for each, to tell the writer
    ended = finish(*(start("-c", ALONE, address, str(i), MESH, folders[i]) for i in range(2)))
    for status, _, stderr in ended:
        assert status == 0, stderr
    return [json.loads(stdout.splitlines()[-1]) for _, stdout, _ in ended], folders


@pytest.mark.slow
def test_every_host_reads_the_rows_of_its_own_devices_and_no_others(alone):
    (first, second), _ = alone
    assert first["batch"] == second["batch"]
    for each in (first, second):
        assert len(each["read"]) == 4 and sorted(each["read"]) == each["held"]
    assert set(first["read"]) | set(second["read"]) == set(first["batch"])


@pytest.mark.slow
def test_the_first_process_alone_writes_metrics(alone):
    _, (first, second) = alone
    assert json.loads((first / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    assert list((first / "tensorboard").iterdir())
    assert not second.exists()


# Replies come from threads, late and in another order than they were asked for.
TURNS = """
import concurrent.futures, itertools, json, sys, time
import jax
from qalign_jax.checkpoints.model import Model
from qalign_jax.data.tokenizer import load_tokenizer
from qalign_jax.decoding.system import System, TextGenerator
from qalign_jax.decoding.turns import Turns
from qalign_jax.models.params import init_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel import barrier, hosts
from qalign_jax.parallel.mesh import make_mesh

tokenizer, mesh, *cluster = sys.argv[1:]
if cluster:
    hosts.initialize(cluster[0], 2, int(cluster[1]))
first, asked = jax.process_index() == 0, []
sent = hosts.broadcast_text(chr(233) * 2000 if first else "of another length")
delays = itertools.cycle((0.4, 0.0, 0.2))

def answer(delay, number, text):
    time.sleep(delay)
    return f" {number} has {len(text)} " if number % 3 else " has " * 300

def reply(number, text):
    asked.append(number)
    return pool.submit(answer, next(delays), number, text) if number != 4 else None

config, execution = preset("tiny", vocab_size=420, init_scale=0.3, max_length=512)
params = init_params(config, jax.random.key(0))
model = Model(config, execution, params, load_tokenizer(tokenizer), "short")
prompts = ["Tom", "Mia has 3 apples.", "How many", "a", "b", "12 + 3", "c", "d", "e", "f"]
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    where = make_mesh(mesh)
    generator = TextGenerator(System.of([model], ["one"]), slots=4, mesh=where, trace=True)
    found = sorted(generator(prompts, 24, turns=Turns(".", reply, most=2)))
answers = [[*answer[:3], answer.trace.to_json()] for answer in found]
print(json.dumps({"sent": sent, "answers": answers, "asked": sorted(asked)}))
barrier.leave()
"""


@pytest.mark.slow
def test_two_processes_go_on_after_the_replies_of_the_first_as_one_process_does(model_file):
    address = coordinator()
    arguments = ("-c", TURNS, str(model_file), MESH)
    ended = finish(
        *(start(*arguments, address, str(i)) for i in range(2)),
        start(*arguments, devices=8),
        timeout=400,
    )
    for status, _, stderr in ended:
        assert status == 0, stderr
    first, second, one = (json.loads(stdout.splitlines()[-1]) for _, stdout, _ in ended)
    assert first["answers"] == second["answers"]
    for ours, alone in zip(first["answers"], one["answers"], strict=True):
        *answer, trace = ours
        *expected, traced = alone
        assert answer == expected
        for name, column in trace.items():
            if name in ("base_probability", "probability", "moved"):
                # sums over tensor may run in another order, and are rounded to four decimals
                np.testing.assert_allclose(column, traced[name], atol=1.1e-4)
            else:
                assert column == traced[name]
    assert first["asked"] == one["asked"] and second["asked"] == []
    assert 4 in one["asked"] and len(one["asked"]) > len(set(one["asked"])) > 4
    assert first["sent"] == second["sent"] == "é" * 2000


@pytest.mark.slow
def test_a_process_that_never_starts_is_named_by_all_that_wait(tmp_path):
    flags = ["--join_timeout_s=10", f"--workdir={tmp_path}", "--processes=3"]
    flags.append(f"--coordinator={coordinator()}")
    ended = finish(*(start("-m", "qalign_jax.run", *flags, f"--process={i}") for i in (0, 2)))
    for status, _, stderr in ended:
        assert status == 75
        joining, error = stderr.splitlines()
        assert "of 3 on" in joining
        assert (
            error
            == "error: not all reached the barrier 'start of 3': process 1 did not come in 10 s"
        )


def test_the_private_module_for_pods_keeps_its_interface():
    """A failure means that JAX has changed how it numbers a pod's processes (parallel/hosts.py)."""
    for cluster in (hosts.clusters.GkeTpuCluster, hosts.clusters.GceTpuCluster):
        assert not cluster.is_env_present()
        assert callable(cluster.get_process_count) and callable(cluster.get_process_id)
        parameters = inspect.signature(cluster.get_coordinator_address).parameters
        assert list(parameters) == ["timeout_secs", "override_coordinator_port"]


# Each host of a pod; Kubernetes sets its environment, and JAX_FORCE_TPU_INIT replaces the chips.
POD = """
import os, sys, jax
from qalign_jax import cli

jax.config.update("jax_platforms", "cpu")

def command(argv):
    from qalign_jax.parallel import barrier, hosts
    hosts.initialize()
    barrier.wait("first")
    return {"process": jax.process_index(), "devices": jax.device_count()}

cli.main(command, lambda: None)
"""


@pytest.mark.slow
def test_the_hosts_of_a_tpu_pod_find_each_other():
    environment = {
        "JAX_PLATFORMS": "",
        "JAX_FORCE_TPU_INIT": "1",
        "JAX_COORDINATOR_PORT": coordinator().rpartition(":")[2],
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost,127.0.0.1",
    }
    environment |= dict.fromkeys(
        ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"), ""
    )
    ended = finish(*(start("-c", POD, **environment, TPU_WORKER_ID=str(i)) for i in range(2)))
    for process, (status, stdout, stderr) in enumerate(ended):
        assert status == 0, stderr
        name = f"process {process} of 2 on {HOST}"
        assert logged(stderr) == [f"{name}: joining its TPU pod", f"{name}: 4 of 8 devices, cpu"]
        assert json.loads(stdout.splitlines()[-1]) == {"process": process, "devices": 8}
