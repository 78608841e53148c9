"""Steps whose loss or gradient is not finite, or whose gradient is far above the usual."""

import collections
import io
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from qalign_jax import files, schema
from qalign_jax.data.batches import Batches
from qalign_jax.parallel import barrier

STOP, SKIP = "stop", "skip"  # what to do about a step that is not finite
SKIPS = 10  # in a row, after which skipping gives up
SPIKE = 10.0  # times the running median of the gradient's norm
_WINDOW, _LEAST = 100, 20  # steps that the median is of


class Anomalies:
    """Looks at every step's loss and gradient norm, and writes anomalies.jsonl.

    A line has step, kind (spike or skipped), loss, grad_norm, median, and the rows and example ids
    of the batch. A resumed run goes on from the metrics and the lines before it, so that it finds
    what an uninterrupted one finds. Process 0 alone writes.

    Args:
      stage_dir: the folder of anomalies.jsonl, nan.json and nan.npz.
      earlier: the rows of metrics.jsonl up to the first step, in process 0.
      on_nan: STOP or SKIP; the step function must skip such an update then.
    """

    def __init__(
        self,
        stage_dir: epath.Path,
        batches: Batches,
        first_step: int,
        earlier: Iterable[Mapping[str, Any]],
        on_nan: str = STOP,
    ):
        self._stage_dir, self._batches, self._on_nan = stage_dir, batches, on_nan
        self._norms: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._norms.extend(row["grad_norm"] for row in earlier if "grad_norm" in row)
        path = self._path = stage_dir / "anomalies.jsonl"
        self._lines: list[dict[str, Any]] = []
        remedy = "delete the file"
        for number, line in files.read_json_lines(path, remedy) if path.exists() else ():
            shape = {"step": schema.whole(1), "kind": schema.one_of("spike", "skipped")}
            schema.check(line, shape, f"{path}:{number}", remedy)
            if line["step"] <= first_step:
                self._lines.append(line)
        skipped = {line["step"] for line in self._lines if line["kind"] == "skipped"}
        steps = range(first_step, 0, -1)  # all processes read the file, and count alike
        self._in_row = next((n for n, step in enumerate(steps) if step not in skipped), first_step)

    @property
    def skipped(self) -> int:
        """Updates left out so far."""
        return sum(line["kind"] == "skipped" for line in self._lines)

    def look(self, step: int, loss: float, norm: float, row_ids: np.ndarray) -> bool:
        """Whether the step counts: False where its update was skipped.

        Raises:
          FloatingPointError: loss or norm is not finite, and on_nan is STOP or too many in a row
            were; nan.json and nan.npz hold the batch.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self._in_row = 0
            median = statistics.median(self._norms) if len(self._norms) >= _LEAST else math.inf
            self._norms.append(norm)
            if norm > SPIKE * median:
                self._add(step, "spike", row_ids, loss=loss, grad_norm=norm, median=median)
                logging.warning(
                    "step %d: the gradient's norm %.3g is %.0f times the median of the %d steps "
                    "before; the ids of its batch are in %s",
                    step, norm, norm / median, len(self._norms) - 1, self._path,
                )  # fmt: skip
            return True
        what = f"the loss is {loss}, the gradient's norm {norm}"
        self._in_row += 1
        if self._on_nan == STOP:
            raise self.stopped(step, row_ids, f"{what}; --config.<stage>.on_nan=skip leaves it out")
        if self._in_row > SKIPS:
            raise self.stopped(step, row_ids, f"{what}, after {SKIPS} updates skipped in a row")
        self._add(step, "skipped", row_ids, loss=str(loss), grad_norm=str(norm))
        logging.warning(
            "step %d: %s; its update is skipped, the %d. in a row; the ids of its batch are in %s",
            step, what, self._in_row, self._path,
        )  # fmt: skip
        return False

    def stopped(self, step: int, row_ids: np.ndarray, what: str) -> FloatingPointError:
        """Writes the batch of a step, its ids to nan.json and its arrays to nan.npz."""
        if jax.process_index() == 0:
            arrays, batch = io.BytesIO(), self._batches.read(row_ids)
            np.savez_compressed(arrays, **batch)  # pyright: ignore[reportArgumentType]
            files.write_bytes(self._stage_dir / "nan.npz", arrays.getvalue())
            report = {"step": step, "what": what, **self._ids(row_ids)}
            files.write_json(self._stage_dir / "nan.json", report)
        barrier.wait(f"the batch of step {step} is written")  # or an early end would stop process 0
        return FloatingPointError(
            f"step {step}: {what}. Its batch is in {self._stage_dir / 'nan.npz'}, the ids of its "
            "examples in nan.json there; what was saved before is whole"
        )

    def _add(self, step: int, kind: str, row_ids: np.ndarray, **values: Any) -> None:
        self._lines.append({"step": step, "kind": kind, **values, **self._ids(row_ids)})
        if jax.process_index() == 0:
            files.write_json_lines(self._path, self._lines)

    def _ids(self, row_ids: np.ndarray) -> dict[str, Any]:
        rows = [int(row) for row in row_ids]
        return {"rows": rows, "examples": [self._batches.packed.row_examples(row) for row in rows]}
