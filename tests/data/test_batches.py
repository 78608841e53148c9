import subprocess
import sys

import numpy as np
import pytest

from qalign_jax.data import packing
from qalign_jax.data.batches import Batches, rows_for


@pytest.fixture
def packed(tmp_path, tokenizer, own_data):
    source = {"name": "jsonl", "path": str(own_data)}
    return packing.build({"own": source}, tokenizer, "short", 96, tmp_path / "cache", 0)


def test_a_batch_is_a_function_of_seed_and_step(packed):
    one, two = Batches(packed, 5, seed=7), Batches(packed, 5, seed=7)
    for step in (11, 0, 3):  # asked for in any order
        np.testing.assert_array_equal(one.row_ids(step), two.row_ids(step))
    other = Batches(packed, 5, seed=8)
    assert any((one.row_ids(t) != other.row_ids(t)).any() for t in range(4))


def test_another_process_reads_the_same_batches(packed):
    program = (
        "import types\n"
        "from qalign_jax.data.batches import Batches\n"
        f"data = types.SimpleNamespace(num_rows={packed.num_rows})\n"
        "print([Batches(data, 5, 7).row_ids(t).tolist() for t in range(6)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    here = [Batches(packed, 5, 7).row_ids(t).tolist() for t in range(6)]
    assert done.stdout.strip() == str(here)


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own(packed):
    batches = Batches(packed, 1, seed=0)
    epochs = [
        [int(batches.row_ids(epoch * packed.num_rows + i)[0]) for i in range(packed.num_rows)]
        for epoch in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(packed.num_rows))
    assert epochs[0] != epochs[1] != epochs[2]


def test_steps_cover_the_epochs(packed):
    batches = Batches(packed, 4, seed=0)
    assert batches.steps(3) == round(3 * packed.num_rows / 4)
    small = Batches(packed, 10 * packed.num_rows, seed=0)
    assert small.steps(1) == 1
    assert len(small.row_ids(0)) == 10 * packed.num_rows


def test_hosts_read_parts_of_the_batch_that_make_it_whole(packed):
    batches = Batches(packed, 6, seed=0)
    ids = batches.row_ids(2)
    whole, parts = batches.read(ids), [batches.read(ids[:2]), batches.read(ids[2:])]
    assert set(whole) == {"tokens", "targets", "segment_ids", "positions", "loss_weights"}
    for name, array in whole.items():
        np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))
        assert array.shape == (6, 96)
        assert array.dtype == (np.float32 if name == "loss_weights" else np.int32)
    np.testing.assert_array_equal(whole["tokens"], packed.tokens[ids])


def test_a_step_holds_the_asked_number_of_examples_on_average(packed):
    per_row = packed.stats["examples_per_row"]
    assert rows_for(128, packed) == round(128 / per_row)
    assert rows_for(128, packed, multiple_of=8) % 8 == 0
    assert abs(rows_for(128, packed, multiple_of=8) - 128 / per_row) <= 4
    assert rows_for(1, packed, multiple_of=8) == 8


@pytest.mark.parametrize("arguments", [(0, 1), (8, 0)])
def test_senseless_sizes_are_refused(packed, arguments):
    with pytest.raises(ValueError, match="at least 1"):
        rows_for(arguments[0], packed, arguments[1])
    with pytest.raises(ValueError, match="at least 1"):
        Batches(packed, 0, seed=0)
