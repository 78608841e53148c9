"""The metrics of training: metrics.jsonl and TensorBoard."""

import json

import jax
import tensorboardX
from etils import epath

from qalign_jax import files


class MetricWriter:
    """Appends rows to metrics.jsonl and TensorBoard; process 0 alone writes.

    Starting again at a step drops the rows from there on, and a torn last line with them, so that
    the file reads like that of a run that was never stopped.
    """

    def __init__(self, stage_dir, first_step: int):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        stage_dir = epath.Path(stage_dir)
        self._path = stage_dir / "metrics.jsonl"
        self._rows = _rows_before(self._path, first_step)
        self._board = tensorboardX.SummaryWriter(
            str(stage_dir / "tensorboard"), purge_step=first_step or None, write_to_disk=True
        )
        self._rewrite()

    def write(self, row: dict) -> None:
        """Adds a row with `step`; None values are left out of TensorBoard."""
        if not self._writes:
            return
        self._rows.append(json.dumps(row))
        for name, value in row.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, row["step"])
        if not files.is_remote(self._path):
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(self._rows[-1] + "\n")
        elif len(self._rows) % 100 == 0:  # object stores cannot append
            self._rewrite()

    def close(self) -> None:
        if self._writes:
            self._rewrite()
            self._board.close()

    def _rewrite(self) -> None:
        files.write_text(self._path, "".join(row + "\n" for row in self._rows))


def _rows_before(path: epath.Path, first_step: int) -> list[str]:
    """The rows up to a step; a line that a killed process left cut off is none of them."""
    kept = []
    rows = files.read_json_lines(path, "delete the line", torn=True) if path.exists() else ()
    for number, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{path}:{number}: not a row with a step; delete the line")
        if row["step"] <= first_step:
            kept.append(json.dumps(row))
    return kept
