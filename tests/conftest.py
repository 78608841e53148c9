"""Eight virtual CPU devices for every test, and the real data where it stands beside."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import pytest


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data, named by QALIGN_TEST_DATA or found beside the checkout."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    path = pathlib.Path(os.environ.get("QALIGN_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data: set QALIGN_TEST_DATA ({path} is not a folder)")
    return path
