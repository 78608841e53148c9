"""Eight virtual CPU devices for every test, a small tokenizer, and the folder of real data."""

import gc
import json
import os
import pathlib
import signal

# A shell without job control starts what it puts behind `&` with SIGINT ignored, and the processes
# that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # compilation takes most of the tests' time
    + " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
# idle threads of torch spin on cores that other test processes need
os.environ.setdefault("OMP_NUM_THREADS", "1")

import filelock
import fsspec
import jax
import pytest

from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.sandbox.pool import Sandbox
from tests.commands import Ended, run_commands
from tests.faults.gcs import Storage
from tests.files import QUESTIONS

# In the environment of the demo's run: none of them may be found in what it leaves.
SECRETS = {
    name: f"planted-{number}-S3cr3t"
    for number, name in enumerate(
        ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY",
         "GOOGLE_APPLICATION_CREDENTIALS", "WANDB_API_KEY", "GITHUB_TOKEN", "DATABASE_PASSWORD")
    )
}  # fmt: skip


MOST_MAPPINGS = 20_000
# The longest files come first, in this order: the last one would leave the other processes idle.
LONGEST = (
    "test_fits.py", "test_readmes.py", "test_notebooks.py", "test_hosts.py", "test_run.py",
    "test_kills.py", "test_recipe.py", "test_readers.py", "test_missing.py", "test_scenarios.py",
)  # fmt: skip


def pytest_configure(config):
    """Keeps that order under xdist, which would start the files of many tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(config, items):
    """Puts the longest files first, and deselects the release tests unless -m names them.

    An -m in addopts would not suffice: -m on the command line replaces it.
    """
    ranks = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(LONGEST)))
    if "release" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("release")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="module")
def few_memory_mappings():
    """Frees compiled programs before the process has as many mappings as Linux lets it have.

    A program takes ten to hundreds; at vm.max_map_count (65,530) XLA ends in a segmentation fault.
    """
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data: QALIGN_TEST_DATA, else shared/data beside the checkout."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    path = pathlib.Path(os.environ.get("QALIGN_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data: set QALIGN_TEST_DATA ({path} is not a folder)")
    return path


@pytest.fixture(scope="session")
def bubblewrap():
    """For tests that start sandboxes: where none starts, CI fails and other machines skip."""
    try:
        Sandbox(1).close()
    except ValueError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """How the demo ended, shortened: one run for all test processes, to read and not to change.

    SECRETS were in its environment.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with filelock.FileLock(folder / "demo.lock"):
        if not (folder / "demo").exists():
            # slots change no answer; of the demo's 128 half would be idle and computed all the same
            case = (
                "run", "--config.fast=True", "--config.evaluation.slots=16",
                f"--config.cache_dir={folder / 'demo_cache'}",
            )  # fmt: skip
            [ended] = run_commands([case], folder, together="demo", **SECRETS).values()
            (folder / "demo.json").write_text(json.dumps(ended, default=str))
        status, stdout, stderr, place = json.loads((folder / "demo.json").read_text())
    assert status == 0, stderr
    return Ended(status, stdout, stderr, pathlib.Path(place))


@pytest.fixture(scope="session")
def texts():
    steps = [f"{a} + {b} = {a + b}. The answer is {a + b}." for a in range(12) for b in range(12)]
    return [text for side in QUESTIONS.values() for text in side] * 3 + steps


@pytest.fixture(scope="session")
def model_file(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(texts, 420, path)
    return path


@pytest.fixture(scope="session")
def tokenizer(model_file):
    return load_tokenizer(model_file)


@pytest.fixture(scope="session")
def _storage():
    """One server a process: TensorStore reads its address once."""
    with Storage() as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        fsspec.config.set_conf_env(fsspec.config.conf)
        yield storage


@pytest.fixture
def storage(_storage):
    """An empty object store for gs:// paths, in this process and in those that a test starts."""
    _storage.reset()
    yield _storage
    _storage.reset()
