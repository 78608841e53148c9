"""Sandboxes that the tests share: one with ample time, one for what ends at the time limit."""

import os

import pytest

from qalign_jax.sandbox.limits import Limits
from qalign_jax.sandbox.pool import Sandbox


@pytest.fixture(scope="session")
def sandbox(bubblewrap):
    os.environ["QALIGN_TEST_SECRET"] = os.environ["HF_TOKEN"] = "REACHED"
    with Sandbox(1, Limits(seconds=60, memory_mb=256)) as found:
        yield found
    del os.environ["QALIGN_TEST_SECRET"], os.environ["HF_TOKEN"]


@pytest.fixture(scope="session")
def impatient(bubblewrap):
    with Sandbox(1, Limits(seconds=2, memory_mb=512)) as found:
        yield found
