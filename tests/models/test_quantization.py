"""int8 weights and caches against numpy, qwix and what they are made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwix._src.core import qarray

from qalign_jax.models.attention import attend_cache
from qalign_jax.models.cache import (
    Cache,
    cache_axes,
    empty_cache,
    layer_of,
    write_cache,
    write_prompts,
)
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import hold, hold_and_free, init_params, random_params
from qalign_jax.models.quantization import INPUTS, quantized_heads, quantized_matrix
from qalign_jax.parallel.mesh import make_mesh

CONFIG = LlamaConfig(
    vocab_size=97, d_model=48, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=96, head_size=12,
    max_length=64, init_scale=0.3,
)  # fmt: skip


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def rounded(wide, axis):
    """numpy's int8 values and scales, the scales' axis kept."""
    scale = np.abs(wide).max(axis=axis, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(wide / scale).astype(np.int8), scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_matrix_has_the_values_and_scales_of_numpy(dtype):
    wide = random(3, 40, 24).astype(dtype)
    wide[1, :, 5] = 0
    found = jax.jit(quantized_matrix)(wide)
    values, scale = rounded(wide.astype(np.float32), axis=1)
    np.testing.assert_allclose(found.scale, scale[:, 0], rtol=1e-6)  # XLA's division by 127
    unrounded = wide.astype(np.float32) / scale
    halves = np.abs(np.abs(unrounded) % 1 - 0.5) < 1e-4  # which may fall on either side
    assert halves.mean() < 0.02
    np.testing.assert_array_equal(np.where(halves, 0, found.values), np.where(halves, 0, values))
    np.testing.assert_allclose(found.values, unrounded, atol=0.5 + 1e-4)
    assert found.values.dtype == "int8" and found.scale.dtype == "float32"
    assert np.abs(found.values).max(axis=1).min() == 0 and np.abs(found.values).max() == 127
    error = np.abs(values * scale - wide.astype(np.float32))
    assert (error <= scale / 2 * (1 + 1e-5)).all()


def test_a_matrix_is_that_of_qwix():
    wide = random(40, 24)
    # it spreads the largest value over 127.5 and not 127 steps
    how = qarray.HowToQuantize(
        qtype=jnp.int8, channelwise_axes=(1,), calibration_method=f"absmax,{127.5 / 127}"
    )
    theirs, ours = qarray.quantize(jnp.asarray(wide), how), quantized_matrix(jnp.asarray(wide))
    np.testing.assert_array_equal(ours.values, theirs.qvalue)
    np.testing.assert_allclose(ours.scale, theirs.scale[0], rtol=1e-6)
    product = ours.product(jnp.asarray(random(2, 40)), 1, (24,))
    expected = random(2, 40) @ np.asarray(qarray.dequantize(theirs))
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-5)


def test_a_value_that_is_none_shows_in_the_scale():
    wide = random(4, 3)
    wide[2, 1], wide[0, 2] = np.nan, np.inf
    scale = np.asarray(quantized_matrix(jnp.asarray(wide)).scale)
    assert np.isfinite(scale).tolist() == [True, False, False]


def as_int8(x):
    """Keys or values after int8, in float32."""
    values, scale = rounded(x, axis=-1)
    return values * scale


@pytest.mark.parametrize("apart", [True, False])
def test_attention_to_an_int8_cache_is_that_to_its_keys_and_values(apart):
    k, v, q = random(2, 8, 2, 12), random(2, 8, 2, 12) + 1, random(2, 3, 4, 12)
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    mask = jnp.arange(8) <= jnp.array([[2, 5, 7], [0, 1, 7]])[..., None]
    axes = cache_axes(CONFIG, apart)
    whole = empty_cache(CONFIG, "float32", 2, 8, apart=apart, int8=True)
    int8 = write_cache(CONFIG, whole[0] if apart else whole, None if apart else 0, positions, k, v)
    own = layer_of(CONFIG, int8, None if apart else 0, 8)
    given = ("batch", "length", "kv_heads", "head_size")
    wide = Cache(
        *(
            jnp.asarray(as_int8(x)).transpose([given.index(name) for name in names])
            for x, names in ((k, axes.keys), (v, axes.values))
        )
    )
    found = attend_cache(jnp.asarray(q), own, axes, mask)
    np.testing.assert_allclose(found, attend_cache(jnp.asarray(q), wide, axes, mask), atol=1e-5)


def test_scales_of_a_bf16_cache_are_those_that_its_values_were_divided_by():
    x = random(5, 12).astype(jnp.bfloat16)
    values, scale = quantized_heads(jnp.asarray(x))
    assert scale.dtype == "bfloat16"
    error = np.abs(values * np.asarray(scale, np.float32)[:, None] - x.astype(np.float32))
    # the scale may be rounded down by 1/512, and 127 is the largest value
    assert (error <= np.asarray(scale, np.float32)[:, None] * 0.75).all()


def test_logits_with_an_int8_cache_are_near_those_with_a_wide_one():
    model = Llama(CONFIG, Execution(dtype="float32"))
    params = hold(CONFIG, init_params(CONFIG, jax.random.key(0)), "float32", apart=False)
    tokens = np.random.default_rng(0).integers(0, 97, (2, 20))
    apply = jax.jit(model.apply, static_argnames="method")
    _, kv = apply({"params": params}, tokens, np.array([20, 20]), method="prefill")
    logits = {}
    for int8 in (False, True):
        cache = empty_cache(CONFIG, "float32", 2, 32, apart=False, int8=int8)
        cache = write_prompts(CONFIG, cache, jnp.arange(2), 0, kv)
        positions = jnp.broadcast_to(20 + jnp.arange(4), (2, 4))
        logits[int8], _ = apply(
            {"params": params}, tokens[:, :4], positions, cache, method="decode"
        )
    error = np.abs(logits[True] - logits[False])[..., :97]
    assert error.mean() < 0.03 * np.std(logits[False][..., :97])
    assert 0 < error.max() < 0.15 * np.std(logits[False][..., :97])


def test_holding_leaf_by_leaf_frees_each_wide_one_and_makes_the_same():
    mesh = make_mesh("fsdp:4,tensor:2")
    expected = hold(CONFIG, random_params(CONFIG, mesh, 0), "bfloat16", apart=False, int8=True)
    params = random_params(CONFIG, mesh, 0)
    found = hold_and_free(CONFIG, params, "bfloat16", mesh, int8=True)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    gone = {
        jax.tree_util.keystr(path[-1:], simple=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.is_deleted()
    }
    assert gone == {*INPUTS, "embedding", "kernel"}  # norms stay as they are
    gate = found["layers"]["mlp"]["gate"]
    assert gate.values.sharding.shard_shape(gate.values.shape) == (2, 12, 48)
    assert gate.scale.sharding.shard_shape(gate.scale.shape) == (2, 48)


def test_holding_what_is_held_changes_nothing_but_to_int8():
    config = dataclasses.replace(CONFIG, n_layers=1)
    params = init_params(config, jax.random.key(0))
    wide = hold(config, params, "float32", apart=False)
    int8 = hold(config, params, "float32", apart=False, int8=True)
    again = hold(config, wide, "float32", apart=False, int8=True)
    assert jax.tree.structure(again) == jax.tree.structure(int8)
    jax.tree.map(np.testing.assert_array_equal, again, int8)
    same = hold(config, int8, "float32", apart=False, int8=True)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (same, int8)), strict=True))
