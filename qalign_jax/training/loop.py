"""The training loop: dispatches a step, then reads the metrics of the one before."""

import concurrent.futures
import math
import signal
import time

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from qalign_jax import files
from qalign_jax.checkpoints.state import Checkpoints
from qalign_jax.data.batches import Batches
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.flops import flops_per_token
from qalign_jax.parallel.chips import peak_tflops
from qalign_jax.parallel.mesh import sharding_of
from qalign_jax.progress import Progress
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
) -> TrainState:
    """Trains from `state.step` to `schedule.steps`, saving on the way and at the end.

    Batch t depends on (seed, t) alone, so that a resumed run has the batches of an uninterrupted
    one.

    Raises:
      FloatingPointError: the loss or the gradient is not finite; the step and the ids of the
        batch's examples are in nan.json of the stage's folder.
      Preempted: SIGTERM or SIGINT arrived and the state is saved, in the last step too.
    """
    stage_dir = epath.Path(stage_dir)
    first = int(state.step)
    writer = MetricWriter(stage_dir, first)
    progress = Progress(name, schedule.steps, first)
    meter = _Meter(config, batches)
    tracer = Tracer(profile, stage_dir / "tensorboard")
    stop = _StopSignal()
    with concurrent.futures.ThreadPoolExecutor(1) as loader, stop:
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
                    _record(done, meter, writer, progress, stage_dir, batches)
                if stops or last or (step + 1) % checkpoints.every == 0:
                    # nothing is saved before its own loss is known to be finite
                    _record(pending, meter, writer, progress, stage_dir, batches)
                    pending = None
                    parts = state.parts()
                    if last:
                        del parts["optimizer"]
                    checkpoints.save(step + 1, parts, final=last)
                if stops or (last and stop.asked):
                    checkpoints.wait()
                    logging.warning("%s: stopped; step %d is saved", name, step + 1)
                    raise Preempted(128 + stop.signal)
        finally:
            tracer.close()
            progress.close()
            writer.close()
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

    def __init__(self, config: LlamaConfig, batches: Batches):
        self._flops = flops_per_token(config, batches.packed.length)
        peak = peak_tflops(jax.devices()[0].device_kind)
        self._peak = peak and peak * 1e12 * jax.device_count()
        self._last = None

    def measure(self, real_tokens: int) -> dict:
        now = time.perf_counter()
        speed = None if self._last is None else real_tokens / (now - self._last)
        self._last = now
        mfu = speed * self._flops / self._peak if speed and self._peak else None
        return {"tokens_per_second": speed, "mfu": mfu}


def _record(pending, meter, writer, progress, stage_dir, batches) -> None:
    row, metrics, ids = pending
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if not (math.isfinite(loss) and math.isfinite(norm)):
        file = stage_dir / "nan.json"
        examples = [batches.packed.row_examples(int(i)) for i in ids]
        report = {"step": row["step"], "loss": str(loss), "grad_norm": str(norm)}
        report |= {"rows": [int(i) for i in ids], "examples": examples}
        if jax.process_index() == 0:
            files.write_json(file, report)
        raise FloatingPointError(
            f"step {row['step']}: the loss is {loss}, the gradient's norm {norm}; the ids of its "
            f"batch are in {file}. Checkpoints from before are whole"
        )
    row |= {"loss": loss, "grad_norm": norm, "trained_tokens": int(metrics["trained_tokens"])}
    real_tokens = int(metrics["tokens"])  # of all hosts
    row |= meter.measure(real_tokens)
    row["packing"] = real_tokens / (len(ids) * batches.packed.length)
    writer.write(row)
    progress.add(real_tokens, loss=loss)


class _StopSignal:
    """Turns SIGTERM and the first SIGINT into a stop after the running step.

    In a cluster JAX's own preemption notice decides, so that all hosts stop at one step.
    """

    def __init__(self):
        self.asked, self.signal = False, signal.SIGTERM
        self._previous = {}

    def __enter__(self):
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self.signal = True, number
        logging.warning("stopping after this step (again to stop at once)")

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; in a cluster every process must ask once a step."""
        if jax.process_count() == 1:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)
