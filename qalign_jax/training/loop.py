"""The training loop: dispatches a step, then reads the metrics of the one before."""

import concurrent.futures
import contextlib
import time

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from qalign_jax.checkpoints.state import Checkpoints
from qalign_jax.data.batches import Batches
from qalign_jax.faults import interrupts
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.flops import flops_per_token
from qalign_jax.models.trainable import WHOLE, Trainable
from qalign_jax.parallel import hosts
from qalign_jax.parallel.chips import peaks
from qalign_jax.parallel.mesh import sharding_of
from qalign_jax.progress import Progress
from qalign_jax.training.anomalies import STOP, Anomalies
from qalign_jax.training.metrics import MetricWriter
from qalign_jax.training.optimizer import Schedule
from qalign_jax.training.profile import Profile, Tracer
from qalign_jax.training.step import BATCH_KEYS, TrainState


class Preempted(SystemExit):
    """The run was asked to stop; its state is saved, and the same command resumes it."""


def train(
    state: TrainState,
    step_function,
    batches: Batches,
    schedule: Schedule,
    *,
    config: LlamaConfig,
    mesh: Mesh,
    checkpoints: Checkpoints,
    stage_dir,
    name: str,
    profile: Profile | None = None,
    on_nan: str = STOP,
    trainable: Trainable = WHOLE,
) -> TrainState:
    """Trains from `state.step` to `schedule.steps`, saving on the way and at the end.

    Batch t depends on (seed, t) alone, so that a resumed run has the batches of an uninterrupted
    one.

    Args:
      on_nan: what to do where loss or gradient are not finite: STOP, or SKIP, for which
        `step_function` leaves such updates out (training/anomalies.py).
      trainable: what `step_function` trains, for its MFU.

    Raises:
      FloatingPointError: the loss, the gradient or the updated weights are not finite; the batch
        is in nan.npz and nan.json of the stage's folder.
      Preempted: SIGTERM or SIGINT arrived and the state is saved, in the last step too.
    """
    stage_dir = epath.Path(stage_dir)
    first = int(state.step)
    meter = _Meter(config, batches, trainable)
    tracer = Tracer(profile, stage_dir / "tensorboard")
    writing = contextlib.closing(MetricWriter(stage_dir, first))
    with (
        concurrent.futures.ThreadPoolExecutor(1) as loader,
        _StopSignal() as stop,
        writing as writer,
    ):
        anomalies = Anomalies(stage_dir, batches, first, writer.rows, on_nan)
        progress = Progress(name, schedule.steps, first)
        upcoming = loader.submit(_load, batches, first, mesh)
        pending = None
        try:
            for step in range(first, schedule.steps):
                last = step + 1 == schedule.steps
                tracer.before(step + 1)
                with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                    with jax.profiler.TraceAnnotation("wait_for_batch"):
                        ids, batch = upcoming.result()
                    state, metrics = step_function(state, batch, np.float32(schedule(step)))
                tracer.after(step + 1, metrics)
                if not last:
                    upcoming = loader.submit(_load, batches, step + 1, mesh)
                row = {"step": step + 1, "learning_rate": schedule(step)}
                done, pending = pending, (row, metrics, ids)
                stops = stop.reached(step)
                if done:
                    _record(done, meter, writer, progress, anomalies, batches)
                if stops or last or (step + 1) % checkpoints.every == 0:
                    # nothing is saved before its own loss is known to be finite
                    _record(pending, meter, writer, progress, anomalies, batches)
                    pending = None
                    parts = state.parts()
                    if last:
                        del parts["optimizer"]
                    writer.flush()
                    try:
                        checkpoints.save(step + 1, parts, final=last)
                    except FloatingPointError as error:
                        raise anomalies.stopped(step + 1, ids, str(error)) from None
                if stops or (last and not hosts.all_of(not stop.asked)):
                    checkpoints.wait()
                    logging.warning("%s: stopped; step %d is saved", name, step + 1)
                    raise Preempted(128 + stop.signal)
        finally:
            tracer.close()
            progress.close()
    return state


def _load(batches: Batches, step: int, mesh: Mesh):
    """Batch `step` on the devices; every host reads the rows of its own devices only."""
    ids = batches.row_ids(step)
    sharding = sharding_of(mesh, ("batch", "length"))
    shape = (len(ids), batches.packed.length)
    parts = {}

    def part(index, key):
        start, stop, _ = index[0].indices(len(ids))
        if (start, stop) not in parts:
            parts[start, stop] = batches.read(ids[start:stop])
        return parts[start, stop][key]

    batch = {
        key: jax.make_array_from_callback(shape, sharding, lambda index, key=key: part(index, key))
        for key in BATCH_KEYS
    }
    return ids, batch


class _Meter:
    """Speed between two records, in real (not padding) tokens a second."""

    def __init__(self, config: LlamaConfig, batches: Batches, trainable: Trainable):
        self._flops = flops_per_token(config, batches.packed.length, trainable=trainable)
        peak = peaks(jax.devices()[0].device_kind)
        self._peak = peak and peak[0] * 1e12 * jax.device_count()
        self._last = None

    def measure(self, real_tokens: int) -> dict:
        now = time.perf_counter()
        speed = None if self._last is None else real_tokens / (now - self._last)
        self._last = now
        mfu = speed * self._flops / self._peak if speed and self._peak else None
        return {"tokens_per_second": speed, "mfu": mfu}


def _record(pending, meter, writer, progress, anomalies: Anomalies, batches) -> None:
    row, metrics, ids = pending
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    real_tokens = int(metrics["tokens"])  # of all hosts
    speed = meter.measure(real_tokens)
    if not anomalies.look(row["step"], loss, norm, ids):
        writer.write(row | {"skipped": anomalies.skipped})
        progress.add()
        return
    row |= {"loss": loss, "grad_norm": norm, "trained_tokens": int(metrics["trained_tokens"])}
    row |= speed
    row["packing"] = real_tokens / (len(ids) * batches.packed.length)
    writer.write(row)
    progress.add(real_tokens, loss=loss)


class _StopSignal(interrupts.Deferred):
    """SIGTERM and the first SIGINT stop after the running step, with its state saved.

    Before the first step has run there is nothing to save, and a signal ends the process. In a
    cluster JAX's preemption service has all hosts stop at one step.
    """

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; in a cluster every process must ask once a step."""
        self.begin()
        if jax.process_count() == 1:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)
