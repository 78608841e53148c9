"""Joining the processes of several hosts."""

import ctypes
import os
import signal

import jax
import numpy as np
from absl import logging

# The one private module: public JAX joins a pod, but does not return the number and the count of
# processes beforehand (tests/parallel/test_hosts.py fails when this module changes).
from jax._src import clusters
from jax.experimental import multihost_utils

from qalign_jax.faults import interrupts
from qalign_jax.parallel import barrier
from qalign_jax.parallel.barrier import HOST, MissingProcess


def initialize(
    coordinator: str | None = None,
    processes: int = 1,
    process: int = 0,
    timeout_s: float = barrier.JOIN_TIMEOUT_S,
    hang_timeout_s: float = barrier.HANG_TIMEOUT_S,
) -> None:
    """Joins the cluster: the one given by hand, else that of the TPU pod around this host.

    Must be called before anything asks JAX for its devices. Every process logs its number and its
    devices; after that, processes other than 0 log warnings alone. A process that is missing from
    then on ends the others, with its name and barrier.STATUS.

    Args:
      coordinator: HOST:PORT of process 0; none leaves it to the pod.
      processes, process: their count and the number of this one, with a coordinator.
      timeout_s: how long to wait for the other processes.
      hang_timeout_s: after how long without a sign of life a process counts as missing.

    Raises:
      ValueError: numbers that do not fit, a malformed address, a port that is taken.
      MissingProcess: not all joined.
    """
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
    address = host.strip("[]"), int(port)
    barrier.join(address, process, processes, timeout_s, hang_timeout_s)
    if jax.config.jax_platforms == "cpu":  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _delay_aborts()
    # JAX ends the processes that are left without a word: behind the watch of `barrier`
    heartbeat_s = max(100, 2 * int(hang_timeout_s))
    jax.distributed.initialize(
        coordinator, processes, process, heartbeat_timeout_seconds=heartbeat_s
    )
    interrupts.take_over()
    here, everywhere = jax.local_device_count(), jax.device_count()
    kind = jax.local_devices()[0].device_kind
    logging.info("%s: %d of %d devices, %s", name, here, everywhere, kind)
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)


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


def all_of(value: bool) -> bool:
    """Whether the value is true in every process; all of them must call this."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def _delay_aborts() -> None:
    """Has an abort wait six seconds, in which the watch of `barrier` names who is missing.

    JAX aborts a process within milliseconds of the end of process 0. A handler gets the signal's
    number, which is SIGABRT's 6, and `sleep` of the C library needs no interpreter.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


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
