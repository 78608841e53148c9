"""What training writes while it runs: metrics.jsonl and TensorBoard."""

import json

import jax
import tensorboardX
from etils import epath

# Peak bf16 TFLOP/s of one device, by a part of its name in jax.Device.device_kind; MFU is left out
# for what is not here.
PEAK_TFLOPS = {
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v6": 918,
    "TPU7x": 1153,
    "H100": 989,
    "H200": 989,
    "A100": 312,
}


def peak_flops() -> float | None:
    """FLOP/s of all devices together, None where the device is not in the table."""
    kind = jax.devices()[0].device_kind
    for name, tflops in PEAK_TFLOPS.items():
        if name in kind:
            return tflops * 1e12 * jax.device_count()
    return None


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
        self._flush()

    def write(self, row: dict) -> None:
        """Adds a row with `step`; None values are left out of TensorBoard."""
        if not self._writes:
            return
        self._rows.append(json.dumps(row))
        for name, value in row.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, row["step"])
        # a local file is appended to; object stores know only whole files
        if str(self._path).startswith("gs://"):
            if len(self._rows) % 100 == 0:
                self._flush()
        else:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(self._rows[-1] + "\n")

    def close(self) -> None:
        if self._writes:
            self._flush()
            self._board.close()

    def _flush(self) -> None:
        self._path.write_text("".join(row + "\n" for row in self._rows))


def _rows_before(path, first_step: int) -> list[str]:
    kept = []
    for line in path.read_text().split("\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= first_step:
            kept.append(line)
    return kept
