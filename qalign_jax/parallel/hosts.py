"""Joining the processes of several hosts."""

import os
import threading

import jax
import numpy as np
from absl import logging

# The one private module: public JAX joins a pod, but does not return the number and the count of
# processes beforehand (tests/parallel/test_hosts.py fails when this module changes).
from jax._src import clusters
from jax.experimental import multihost_utils

from qalign_jax.parallel.barrier import (
    HOST,
    JOIN_TIMEOUT_S,
    Coordinator,
    MissingProcess,
    Worker,
)

# Longer than any host's own work between two barriers, the building of data sets above all.
BARRIER_TIMEOUT_S = 3600
# For the processes that are left to end together; JAX would wait minutes for the missing ones.
EXIT_GRACE_S = 5

_barrier: Coordinator | Worker | None = None


def initialize(
    coordinator: str | None = None,
    processes: int = 1,
    process: int = 0,
    timeout_s: float = JOIN_TIMEOUT_S,
) -> None:
    """Joins the cluster: the one given by hand, else that of the TPU pod around this host.

    Must be called before anything asks JAX for its devices. Every process logs its number and its
    devices; after that, processes other than 0 log warnings alone.

    Args:
      coordinator: HOST:PORT of process 0; none leaves it to the pod.
      processes, process: their count and the number of this one, with a coordinator.
      timeout_s: how long to wait for the other processes.

    Raises:
      ValueError: numbers that do not fit, a malformed address, a port that is taken.
      MissingProcess: not all joined.
    """
    global _barrier
    pod = None
    if coordinator:
        if not 0 <= process < processes:
            raise ValueError(f"--process={process} must be from 0 to --processes={processes} - 1")
        port = coordinator.rpartition(":")[2]
        if not port.isdigit() or int(port) > 65535:
            raise ValueError(f"--coordinator={coordinator} must be HOST:PORT")
    elif (processes, process) != (1, 0):
        raise ValueError("--processes and --process need --coordinator=HOST:PORT of process 0")
    else:
        pod = _pod()
        if pod is None or (processes := pod.get_process_count()) == 1:
            return
        process = pod.get_process_id()
    name = f"process {process} of {processes} on {HOST}"
    logging.info("%s: joining %s", name, coordinator or "its TPU pod")
    coordinator = coordinator or _coordinator(pod, timeout_s)
    host, _, port = coordinator.rpartition(":")
    first = f"start of {processes}"  # processes that expect another number wait at another barrier
    if process == 0:
        _barrier = Coordinator(int(port), processes, timeout_s, first)
    else:
        _barrier = Worker((host.strip("[]"), int(port)), process, timeout_s, first)
    if jax.config.jax_platforms == "cpu":  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process)
    here, everywhere = jax.local_device_count(), jax.device_count()
    kind = jax.local_devices()[0].device_kind
    logging.info("%s: %d of %d devices, %s", name, here, everywhere, kind)
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)


def barrier(name: str) -> None:
    """Returns when every process has reached the barrier of this name.

    Raises:
      MissingProcess: not all did within BARRIER_TIMEOUT_S, or one has ended.
    """
    if jax.process_count() > 1:
        assert _barrier, "the processes were not joined by hosts.initialize"
        _barrier.wait(name, BARRIER_TIMEOUT_S)


def broadcast_text(text: str) -> str:
    """Process 0's text, in every process; all of them must call this, with any text."""
    if jax.process_count() == 1:
        return text
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    # a program is compiled for each length, so there are few
    sent = np.zeros(1 << max(10, size.bit_length()), np.uint8)
    if jax.process_index() == 0:
        sent[:size] = content
    sent = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return sent[:size].tobytes().decode()


def exit_after_grace(status: int) -> None:
    """Ends this process in EXIT_GRACE_S if it has not ended by then.

    JAX's own shutdown waits minutes for the processes that are missing.
    """
    # process 0 is the last: JAX aborts the others as soon as its coordination service ends
    seconds = EXIT_GRACE_S if isinstance(_barrier, Worker) else EXIT_GRACE_S + 2
    timer = threading.Timer(seconds, os._exit, [status])
    timer.daemon = True
    timer.start()


def _pod():
    """JAX's description of the TPU pod around this host; None outside of a pod."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return None
    pods = (clusters.GkeTpuCluster, clusters.GceTpuCluster)
    return next((pod for pod in pods if pod.is_env_present()), None)


def _coordinator(pod, timeout_s: float) -> str:
    try:
        return pod.get_coordinator_address(timeout_s, os.environ.get("JAX_COORDINATOR_PORT"))
    except RuntimeError as error:  # some hosts have no address before they run
        raise MissingProcess(f"process 0 did not come in {timeout_s:g} s ({error})") from None
