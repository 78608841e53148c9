"""What tests of training share."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def batch():
    """16 rows of two documents and some padding, some of the targets trained."""
    rng = np.random.default_rng(0)
    rows, length = 16, 32
    tokens = rng.integers(0, 300, (rows, length)).astype(np.int32)
    segment_ids = np.ones((rows, length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    for row, split in enumerate(rng.integers(5, 20, rows)):
        segment_ids[row, split:] = 2
        positions[row, split:] = np.arange(length - split)
    segment_ids[:, 28:] = 0
    weights = (rng.random((rows, length)) < 0.5) & (segment_ids > 0)
    weights[:4] = False  # whole devices without a trained token
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": positions,
        "segment_ids": segment_ids,
        "loss_weights": weights.astype(np.float32),
    }
