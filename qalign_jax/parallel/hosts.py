"""Joining the processes of several hosts."""

import os

import jax
from orbax.checkpoint import multihost

# Longer than any host's own work between two meetings, the building of data sets above all.
TIMEOUT_S = 3600


def initialize(coordinator: str | None = None, processes: int = 1, process: int = 0) -> None:
    """Joins the cluster: the one given by hand, else the one that a TPU pod's environment names.

    Must come before anything asks JAX for its devices.

    Args:
      coordinator: HOST:PORT of process 0; None leaves it to the environment.
      processes, process: how many there are and which this is, with a coordinator.

    Raises:
      ValueError: numbers that do not fit.
    """
    if coordinator:
        if not 0 <= process < processes:
            raise ValueError(f"--process={process} must be from 0 to --processes={processes} - 1")
        if os.environ.get("JAX_PLATFORMS") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, processes, process)
    elif len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()


def wait_for_all(meeting: str) -> None:
    """Returns when every process is here; the name of a meeting is used once.

    It goes through the coordinator, not the devices, whose collectives lose patience early.
    """
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=meeting, timeout_ms=TIMEOUT_S * 1000)
