"""The step: sharded = single device, accumulated = whole, packed = unpacked, JAX = torch."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest
import torch
import transformers

from qalign_jax.models.config import REMAT_POLICIES, Execution
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params, random_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.optimizer import OptimizerConfig, Schedule
from qalign_jax.training.step import init_state, loss_and_gradients, make_train_step
from tests.reference import to_transformers

CONFIG, _ = preset("tiny", vocab_size=300, n_heads=8, n_kv_heads=8, head_size=8, init_scale=0.1)
PLAIN = Execution(dtype="float32", remat="none", attention="plain")
MODEL = Llama(CONFIG, PLAIN)


def mesh_of(spec):
    return make_mesh("", jax.devices()[:1]) if spec == "one" else make_mesh(spec)


@pytest.fixture(scope="module")
def on_one_device(batch):
    params = init_params(CONFIG, jax.random.key(0))
    return params, compute(MODEL, params, batch, "one")


def compute(model, params, batch, spec, micro_batches=1):
    function = jax.jit(loss_and_gradients(model, mesh_of(spec), micro_batches))
    return jax.tree.map(np.asarray, function(params, batch))


def assert_near(found, expected, relative):
    def near(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(b).max())

    jax.tree.map(near, found, expected)


@pytest.mark.parametrize(
    "spec",
    ["fsdp:8", "fsdp:4,tensor:2", "fsdp:2,tensor:4", "tensor:8", "data:2,fsdp:2x2"],
)
def test_loss_and_every_gradient_on_eight_devices_equal_those_on_one(spec, batch, on_one_device):
    params, expected = on_one_device
    assert_near(compute(MODEL, params, batch, spec), expected, 1e-5)


@pytest.fixture(scope="module")
def wide():
    """A config, parameters and a batch that splash can tile, and the plain step on one device."""
    config, _ = preset(
        "tiny", vocab_size=300, d_model=64, n_heads=4, n_kv_heads=2, head_size=128, init_scale=0.05
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 300, (4, 128)).astype(np.int32)
    segments = np.repeat([[1, 2, 0]], [60, 58, 10], axis=1).repeat(4, axis=0).astype(np.int32)
    positions = np.concatenate([np.arange(60), np.arange(58), np.arange(10)]).astype(np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.tile(positions, (4, 1)),
        "segment_ids": segments,
        "loss_weights": ((rng.random((4, 128)) < 0.5) & (segments > 0)).astype(np.float32),
    }
    params = init_params(config, jax.random.key(0))
    return config, params, batch, compute(Llama(config, PLAIN), params, batch, "one")


@pytest.mark.slow
@pytest.mark.parametrize("remat", REMAT_POLICIES)
@pytest.mark.parametrize("attention", ["plain", "blocked", "splash"])
def test_every_remat_policy_and_attention_on_a_mesh_equals_the_plain_step(remat, attention, wide):
    config, params, batch, expected = wide
    model = Llama(config, dataclasses.replace(PLAIN, remat=remat, attention=attention))
    assert_near(compute(model, params, batch, "fsdp:2x2,tensor:2"), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["plain", "blocked", "splash"])
def test_in_bfloat16_they_stay_within_a_hundredth_of_the_plain_step(attention, wide):
    config, params, batch, _ = wide
    bf16 = dataclasses.replace(PLAIN, dtype="bfloat16")
    expected = compute(Llama(config, bf16), params, batch, "one")
    model = Llama(config, dataclasses.replace(bf16, attention=attention))
    loss, gradients, _ = compute(model, params, batch, "fsdp:2x2,tensor:2")
    assert abs(loss - expected[0]) < 1e-2 * expected[0]
    norm = optax.tree.norm(jax.tree.map(np.subtract, gradients, expected[1]))
    assert norm < 1e-2 * optax.tree.norm(expected[1])


def test_a_tied_head_has_the_gradient_of_both_its_uses_when_sharded(batch):
    model = Llama(dataclasses.replace(CONFIG, tied=True), PLAIN)
    params = init_params(model.config, jax.random.key(0))
    expected = compute(model, params, batch, "one")
    assert_near(compute(model, params, batch, "fsdp:2,tensor:4"), expected, 1e-5)


def test_accumulated_micro_batches_weigh_by_trained_tokens(batch, on_one_device):
    params, expected = on_one_device
    assert_near(compute(MODEL, params, batch, "fsdp:4,tensor:2", 4), expected, 1e-5)


def test_a_batch_without_trained_tokens_gives_zeros_not_nan(batch, on_one_device):
    params, _ = on_one_device
    empty = batch | {"loss_weights": np.zeros_like(batch["loss_weights"])}
    loss, gradients, trained = compute(MODEL, params, empty, "one")
    assert loss == 0 and trained == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_a_packed_batch_has_the_loss_and_gradient_of_its_documents_alone(batch, on_one_device):
    params, packed = on_one_device
    alone = {key: [] for key in batch}
    for row in range(16):
        for segment in (1, 2):
            inside = batch["segment_ids"][row] == segment
            for key, values in batch.items():
                document = np.zeros(32, values.dtype)
                document[: inside.sum()] = values[row, inside]
                alone[key].append(document)
    unpacked = {key: np.stack(rows) for key, rows in alone.items()}
    unpacked["segment_ids"] = (unpacked["segment_ids"] > 0).astype(np.int32)
    assert_near(compute(MODEL, params, unpacked, "one"), packed, 1e-5)


def test_a_mesh_that_does_not_divide_the_model_is_refused():
    config = dataclasses.replace(CONFIG, n_kv_heads=4)
    with pytest.raises(ValueError, match="kv_heads"):
        loss_and_gradients(Llama(config, PLAIN), make_mesh("tensor:8"))


def test_random_parameters_are_the_same_on_every_mesh():
    one = random_params(CONFIG, mesh_of("one"), 3)
    eight = random_params(CONFIG, make_mesh("fsdp:4,tensor:2"), 3)
    jax.tree.map(np.testing.assert_array_equal, one, eight)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 50, 99])
def test_the_schedule_is_that_of_transformers(step):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=2e-5)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 3, 100)
    for _ in range(step):
        optimizer.step()
        scheduler.step()
    expected = scheduler.get_last_lr()[0]
    assert math.isclose(Schedule(2e-5, 100)(step), expected, rel_tol=1e-9, abs_tol=1e-12)


def test_three_steps_equal_those_of_torch_adamw(batch):
    mesh = make_mesh("fsdp:4,tensor:2")
    params = random_params(CONFIG, mesh, 0)
    model = to_transformers(CONFIG, jax.tree.map(np.asarray, params))
    model.train()
    schedule = Schedule(lr=1e-3, steps=20, warmup=0.03)
    optimizer_config = OptimizerConfig(clip=0.5)
    state = init_state(CONFIG, optimizer_config, mesh, params)
    step_function = make_train_step(MODEL, optimizer_config, mesh)

    # the reference has no segment ids: one document per row
    rows = {
        "positions": np.tile(np.arange(32, dtype=np.int32), (16, 1)),
        "segment_ids": np.ones((16, 32), np.int32),
    }
    batch = batch | rows
    tokens, targets = (torch.from_numpy(batch[k].astype(np.int64)) for k in ("tokens", "targets"))
    trained = torch.from_numpy(batch["loss_weights"]).flatten() > 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 1, 20)

    for step in range(4):  # the first has a learning rate of zero
        state, metrics = step_function(state, batch, np.float32(schedule(step)))
        optimizer.zero_grad()
        logits = model(input_ids=tokens).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits[trained], targets.flatten()[trained])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        np.testing.assert_allclose(float(metrics["loss"]), loss.item(), rtol=1e-5)
        np.testing.assert_allclose(float(metrics["grad_norm"]), norm.item(), rtol=1e-5)
    found = to_transformers(CONFIG, jax.tree.map(np.asarray, state.params)).state_dict()
    for name, value in model.state_dict().items():
        difference = (found[name] - value).norm() / value.norm()
        assert difference < 1e-5, (name, difference)
