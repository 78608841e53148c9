"""Eight virtual CPU devices for every test, a small tokenizer, and the folder of real data."""

import json
import os
import pathlib

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
import pytest

from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.sandbox.pool import Sandbox
from tests.commands import Ended, run_commands
from tests.files import QUESTIONS


def pytest_collection_modifyitems(config, items):
    """Deselects the release tests unless -m names them.

    An -m in addopts would not suffice: -m on the command line replaces it.
    """
    if "release" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("release")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


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
    """How the demo ended, shortened: one run for all test processes, to read and not to change."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with filelock.FileLock(folder / "demo.lock"):
        if not (folder / "demo").exists():
            case = ("run", "--config.fast=True", f"--config.cache_dir={folder / 'demo_cache'}")
            [ended] = run_commands([case], folder, together="demo").values()
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
