"""Training a part of a model: adapters as PEFT trains them, int8 bases, matrices of some layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from qalign_jax.checkpoints import hf_weights, lora
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import hold, init_params, random_params, unhold_and_free
from qalign_jax.models.presets import preset
from qalign_jax.models.trainable import (
    Trainable,
    freeze_and_free,
    frozen_specs,
    new_adapter,
    put,
    take,
    trained_specs,
)
from qalign_jax.parallel.mesh import make_mesh, on_mesh
from qalign_jax.training.optimizer import OptimizerConfig
from qalign_jax.training.step import init_state, loss_and_gradients, make_train_step
from tests.reference import to_transformers
from tests.training.test_step import PLAIN, assert_near, mesh_of

CONFIG, _ = preset(
    "tiny", vocab_size=300, n_heads=8, n_kv_heads=8, head_size=8, init_scale=0.1, n_layers=4
)
MODEL = Llama(CONFIG, PLAIN)
ADAPTER = Adapter(rank=4, alpha=8)
SOME = dataclasses.replace(ADAPTER, matrices=("query", "down"), scaling="sqrt_rank")
CASES = {
    "adapter": Trainable(ADAPTER),
    "some matrices": Trainable(SOME),
    "int8": Trainable(ADAPTER, int8=True),
    "dropout": Trainable(dataclasses.replace(ADAPTER, dropout=0.3)),
    "layers": Trainable.of("layers:1-2/mlp"),
    "first layers, int8": Trainable.of("layers:0-1/query,down", int8=True),
    "last layer": Trainable.of("layers:3"),
}


def begin(trainable, mesh, params=None):
    """What is trained, A and B random in adapters, and what is frozen."""
    params = params or random_params(CONFIG, mesh, 0)
    held = hold(CONFIG, params, "float32", apart=False, int8=trainable.int8)
    if trainable.adapter:
        pairs = new_adapter(CONFIG, trainable.adapter, mesh, 1)
        rng = np.random.default_rng(2)
        trained = jax.tree.map(
            lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.1, jnp.float32), pairs
        )
        return trained, held
    trained = take(trainable, params)
    return trained, freeze_and_free(trainable, jax.tree.map(jnp.copy, held))


def compute(trainable, batch, spec, micro_batches=1):
    mesh = mesh_of(spec)
    trained, frozen = begin(trainable, make_mesh("", jax.devices()[:1]))
    trained = jax.device_put(trained, on_mesh(mesh, trained_specs(CONFIG, trainable)))
    frozen = jax.device_put(frozen, on_mesh(mesh, frozen_specs(CONFIG, trainable)))
    if trainable.adapter and trainable.adapter.dropout:
        keys = jax.vmap(jax.random.key)(jnp.arange(len(batch["tokens"])))
        batch = {**batch, "noise": keys}
    function = jax.jit(loss_and_gradients(MODEL, mesh, micro_batches, trainable))
    return jax.tree.map(np.asarray, function(trained, batch, frozen))


@pytest.fixture(scope="module")
def on_one_device(batch):
    return {name: compute(trainable, batch, "one") for name, trainable in CASES.items()}


@pytest.mark.parametrize(
    ("name", "spec"),
    [(name, "fsdp:4,tensor:2") for name in CASES]
    + [("int8", "data:2,fsdp:2x2"), ("dropout", "tensor:8"), ("layers", "tensor:8")],
)
def test_loss_and_every_gradient_on_eight_devices_equal_those_on_one(
    name,
    spec,
    batch,
    on_one_device,
):
    assert_near(compute(CASES[name], batch, spec), on_one_device[name], 1e-5)


@pytest.mark.parametrize("name", ["int8", "dropout", "layers"])
def test_micro_batches_sum_up_to_the_whole_batch(name, batch, on_one_device):
    assert_near(compute(CASES[name], batch, "fsdp:2,tensor:4", 4), on_one_device[name], 1e-5)


@pytest.mark.parametrize("name", ["layers", "last layer"])
def test_gradients_of_some_layers_are_those_of_the_whole_model(name, batch, on_one_device):
    params = init_params(CONFIG, jax.random.key(0))
    mesh = mesh_of("one")
    loss, whole, trained = jax.jit(loss_and_gradients(MODEL, mesh))(params, batch)
    expected = loss, take(CASES[name], whole), trained
    assert_near(on_one_device[name], jax.tree.map(np.asarray, expected), 1e-5)
    changed = put(CASES[name], params, jax.tree.map(jnp.zeros_like, take(CASES[name], params)))
    zeros = jax.tree.map(lambda leaf: int((leaf == 0).sum()), changed["layers"])
    first, last = CASES[name].layers
    assert zeros["mlp"]["up"] == (last + 1 - first) * CONFIG.d_model * CONFIG.d_ff


def test_an_int8_base_is_that_of_its_dequantised_weights(batch):
    mesh, wide = make_mesh("", jax.devices()[:1]), Trainable(ADAPTER)
    trained, held = begin(CASES["int8"], mesh)

    def computed(trainable, frozen):
        function = jax.jit(loss_and_gradients(MODEL, mesh, 1, trainable))
        return jax.tree.map(np.asarray, function(trained, batch, frozen))

    expected = computed(CASES["int8"], held)
    params = unhold_and_free(CONFIG, held, "float32", mesh)
    found = computed(wide, hold(CONFIG, params, "float32", apart=False))
    assert_near(found, expected, 1e-5)
    plain, _ = begin(wide, mesh)
    assert not np.allclose(expected[0], computed(wide, begin(wide, mesh)[1])[0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, plain, trained)


def test_three_steps_equal_those_of_peft_and_torch(batch, tmp_path):
    mesh, optimizer_config = make_mesh("fsdp:4,tensor:2"), OptimizerConfig(clip=0.5)
    trainable, params = Trainable(ADAPTER), random_params(CONFIG, mesh, 0)
    base = to_transformers(CONFIG, jax.tree.map(np.asarray, params))
    pairs, frozen = begin(trainable, mesh, params)
    lora.write(tmp_path, ADAPTER, pairs, "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    rows = {
        "positions": np.tile(np.arange(32, dtype=np.int32), (16, 1)),
        "segment_ids": np.ones((16, 32), np.int32),
    }
    batch = batch | rows  # the reference has no segment ids: one document a row
    state = init_state(CONFIG, optimizer_config, mesh, pairs, trainable, frozen)
    step_function = make_train_step(MODEL, optimizer_config, mesh, trainable=trainable)
    tokens, targets = (torch.from_numpy(batch[k].astype(np.int64)) for k in ("tokens", "targets"))
    trained = torch.from_numpy(batch["loss_weights"]).flatten() > 0
    weights = [each for each in model.parameters() if each.requires_grad]
    assert len(weights) == 2 * 7 * CONFIG.n_layers
    optimizer = torch.optim.AdamW(weights, lr=2e-4, weight_decay=0.0)
    for _ in range(3):
        state, metrics = step_function(state, batch, np.float32(2e-4))
        optimizer.zero_grad()
        logits = model(input_ids=tokens).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits[trained], targets.flatten()[trained])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimizer.step()
        np.testing.assert_allclose(float(metrics["loss"]), loss.item(), rtol=1e-5)
        np.testing.assert_allclose(float(metrics["grad_norm"]), norm.item(), rtol=1e-5)
    for part, tree in state.params["layers"].items():
        for name, pair in tree.items():
            module = hf_weights.WEIGHTS["layers", part, name][0].removesuffix(".weight")
            for layer in range(CONFIG.n_layers):
                other = model.get_submodule(f"base_model.model.{module.format(layer)}")
                for own, theirs in ((pair["a"], other.lora_A), (pair["b"], other.lora_B)):
                    theirs = theirs["default"].weight.detach().numpy().T
                    difference = np.linalg.norm(own[layer] - theirs) / np.linalg.norm(theirs)
                    assert difference < 1e-5, (name, layer, difference)
