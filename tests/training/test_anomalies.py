"""Training stops at a loss that is not finite, or skips its update, and tells of spikes."""

import json

import jax
import numpy as np
import pytest

from qalign_jax.checkpoints.state import Checkpoints
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import random_params
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.anomalies import SKIP, SKIPS, STOP
from qalign_jax.training.loop import train
from qalign_jax.training.optimizer import OptimizerConfig, Schedule
from qalign_jax.training.step import TrainState, abstract_state, init_state, make_train_step
from tests.training.test_loop import CONFIG, EXECUTION, make_batches

OPTIMIZER = OptimizerConfig()


@pytest.fixture(scope="module")
def batches(tmp_path_factory, tokenizer):
    return make_batches(tmp_path_factory.mktemp("anomalies"), tokenizer)


def run(folder, batches, harm, steps=30, lr=1e-3, on_nan=STOP, until=None, optimizer=OPTIMIZER):
    """Trains, resuming, with loss_weights multiplied by `harm` of the step, counted from 1.

    Up to the step `until`, if it is given.
    """
    mesh = make_mesh("single")
    step_function = make_train_step(Llama(CONFIG, EXECUTION), optimizer, mesh, 1, on_nan == SKIP)
    checkpoints = Checkpoints(folder, every=5)
    wanted = abstract_state(CONFIG, optimizer, mesh).parts()
    first, parts = checkpoints.restore(wanted) or (0, {})
    state = init_state(CONFIG, optimizer, mesh, random_params(CONFIG, mesh, 0))
    if parts:
        state = TrainState.from_parts(parts)
    number = first

    def harmed(state, batch, learning_rate):
        nonlocal number
        number += 1
        if number == until:
            raise KeyboardInterrupt
        weights = batch["loss_weights"]
        return step_function(
            state, {**batch, "loss_weights": weights * harm(number, weights)}, learning_rate
        )

    try:
        return train(
            state, harmed, batches, Schedule(lr, steps), config=CONFIG, mesh=mesh,
            checkpoints=checkpoints, stage_dir=folder, name="anomalies", on_nan=on_nan,
        )  # fmt: skip
    finally:
        checkpoints.close()


def at(*steps):
    return lambda number, _: np.float32(np.nan if number in steps else 1)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_loss_that_is_not_finite_stops_and_saves_its_batch(batches, tmp_path):
    message = r"step 12: the loss is nan, .*on_nan=skip.*whole"
    for _ in range(2):  # the same command finds the same step
        with pytest.raises(FloatingPointError, match=message):
            run(tmp_path, batches, at(12))
        assert Checkpoints(tmp_path, every=5).steps() == [10, 5]
    report = json.loads((tmp_path / "nan.json").read_text())
    assert report["step"] == 12
    assert report["rows"] == batches.row_ids(11).tolist()
    expected = [batches.packed.row_examples(row) for row in report["rows"]]
    assert report["examples"] == expected and expected[0][0].startswith("own/")
    saved = np.load(tmp_path / "nan.npz")
    jax.tree.map(np.testing.assert_array_equal, dict(saved), batches.read(batches.row_ids(11)))


def test_a_skipped_update_changes_nothing_is_counted_and_resumes_alike(batches, tmp_path):
    state = run(tmp_path / "straight", batches, at(3, 4, 22), on_nan=SKIP)
    assert int(state.step) == 30
    rows = lines(tmp_path / "straight" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 31))
    skipped = {row["step"]: row["skipped"] for row in rows if "skipped" in row}
    assert skipped == {3: 1, 4: 2, 22: 3}
    assert not any("loss" in row for row in rows if "skipped" in row)
    found = lines(tmp_path / "straight" / "anomalies.jsonl")
    assert [(line["step"], line["kind"], line["loss"]) for line in found] == [
        (3, "skipped", "nan"), (4, "skipped", "nan"), (22, "skipped", "nan")
    ]  # fmt: skip
    assert found[2]["rows"] == batches.row_ids(21).tolist()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", batches, at(3, 4, 22), on_nan=SKIP, until=24)
    resumed = run(tmp_path / "stopped", batches, at(3, 4, 22), on_nan=SKIP)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert lines(tmp_path / "stopped" / "anomalies.jsonl") == found


def test_skipped_updates_leave_weights_and_moments_as_they_were(batches, tmp_path):
    mesh = make_mesh("single")
    fresh = init_state(CONFIG, OPTIMIZER, mesh, random_params(CONFIG, mesh, 0))
    state = run(tmp_path, batches, at(1, 2), steps=2, on_nan=SKIP)
    jax.tree.map(np.testing.assert_array_equal, state.params, fresh.params)
    jax.tree.map(np.testing.assert_array_equal, state.moments, fresh.moments)


def test_skipping_gives_up_after_so_many_in_a_row(batches, tmp_path):
    with pytest.raises(FloatingPointError, match=f"step {3 + SKIPS}: .*after {SKIPS} updates"):
        run(
            tmp_path,
            batches,
            lambda number, _: np.float32(np.nan if number > 2 else 1),
            on_nan=SKIP,
        )
    assert (tmp_path / "nan.npz").exists()
    kinds = [line["kind"] for line in lines(tmp_path / "anomalies.jsonl")]
    assert kinds == ["skipped"] * SKIPS
    with pytest.raises(FloatingPointError, match=f"step {3 + SKIPS}: "):  # started again, too
        run(tmp_path, batches, at(*range(3, 31)), on_nan=SKIP)


@pytest.mark.parametrize("line", ["[1]", '{"step": "x", "kind": "spike"}', '{"kind": "spike"}'])
def test_a_damaged_file_of_anomalies_is_named(line, batches, tmp_path):
    (tmp_path / "anomalies.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"anomalies\.jsonl:1: .*delete the file"):
        run(tmp_path, batches, at(), steps=1)


def spike(number, weights):
    """Weights of which all but a hundredth cancel out: the gradient's norm is far above."""
    if number != 26:
        return np.float32(1)
    trained = np.flatnonzero(np.asarray(weights).ravel())
    factors = np.ones(weights.size, np.float32)
    half = len(trained) // 2
    factors[trained[:half]] = -(len(trained) - half) / half * 0.999
    return factors.reshape(weights.shape)


def test_a_spike_of_the_gradient_is_logged_with_its_batch_and_a_resumed_run_finds_it_too(
    batches, tmp_path, caplog
):
    run(tmp_path / "straight", batches, spike)
    [found] = lines(tmp_path / "straight" / "anomalies.jsonl")
    assert (found["step"], found["kind"]) == (26, "spike")
    norms = [row["grad_norm"] for row in lines(tmp_path / "straight" / "metrics.jsonl")]
    assert found["median"] == pytest.approx(np.median(norms[:25]))
    assert found["grad_norm"] == norms[25] > 10 * found["median"]
    assert found["rows"] == batches.row_ids(25).tolist()
    assert found["examples"] == [batches.packed.row_examples(row) for row in found["rows"]]
    assert "step 26: the gradient's norm" in caplog.text

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", batches, spike, until=24)
    run(tmp_path / "stopped", batches, spike)
    assert lines(tmp_path / "stopped" / "anomalies.jsonl") == [found]


def test_an_update_that_overflows_is_not_saved_be_it_the_last(batches, tmp_path):
    optimizer = OptimizerConfig(weight_decay=1e3)
    with pytest.raises(FloatingPointError, match=r"step 2: after the update params/.*not saved"):
        run(tmp_path, batches, at(), steps=2, lr=1e38, optimizer=optimizer)
    assert Checkpoints(tmp_path, every=5).steps() == []
    assert (tmp_path / "nan.npz").exists()
