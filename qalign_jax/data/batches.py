"""Batch t as a pure function of (seed, t), on any number of hosts."""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import numpy as np

from qalign_jax.data.packing import ARRAYS, PackedData


@dataclasses.dataclass(frozen=True)
class Batches:
    """Shuffled rows, each epoch in an order of its own; a batch may reach into the next epoch.

    There is no state between steps: a run resumes at step t with batch t. A host reads only
    the rows that its devices hold.
    """

    packed: PackedData
    rows_per_batch: int
    seed: int

    def __post_init__(self):
        if self.rows_per_batch < 1:
            raise ValueError(f"rows_per_batch={self.rows_per_batch} must be at least 1")

    @functools.cached_property
    def _rows(self) -> grain.MapDataset:
        return grain.MapDataset.range(self.packed.num_rows).shuffle(seed=self.seed).repeat()

    def steps(self, epochs: float) -> int:
        """Steps that see every row `epochs` times, to the nearest step."""
        return max(1, round(epochs * self.packed.num_rows / self.rows_per_batch))

    def row_ids(self, step: int) -> np.ndarray:
        """The global batch of step t = 0, 1, ..: rows of the packed data, [B] int64."""
        first = step * self.rows_per_batch
        return np.array([self._rows[first + i] for i in range(self.rows_per_batch)], np.int64)

    def read(self, row_ids: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Rows as arrays [len(row_ids), T]: int32, and float32 loss_weights."""
        rows = {name: getattr(self.packed, name)[np.asarray(row_ids)] for name in ARRAYS}
        return rows | {"loss_weights": rows["loss_weights"].astype(np.float32)}


def rows_for(batch_size_examples: int, packed: PackedData, multiple_of: int = 1) -> int:
    """Rows a batch, so that a step holds `batch_size_examples` examples on average.

    The paper's 128 examples a step then give its number of steps and its schedule. The nearest
    multiple of `multiple_of` (what the mesh divides a batch by), and at least one.
    """
    if batch_size_examples < 1 or multiple_of < 1:
        raise ValueError(
            f"batch_size={batch_size_examples} and multiple_of={multiple_of} must be at least 1"
        )
    return nearest_rows(batch_size_examples / packed.stats["examples_per_row"], multiple_of)


def nearest_rows(rows: float, multiple_of: int) -> int:
    """The nearest multiple, and at least one."""
    return max(1, round(rows / multiple_of)) * multiple_of
