"""The cache's orders in memory hold the same tokens, wide and in int8."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qalign_jax.models.cache import (
    cache_axes,
    cache_length,
    empty_cache,
    is_by_row,
    layer_of,
    read_prompts,
    write_cache,
    write_prompts,
)
from qalign_jax.models.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=7, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=8, head_size=4
)
BATCH, LENGTH = 3, 8
TOKENS = ("batch", "length", "kv_heads", "head_size")


def tokens_of(cache, apart):
    """Keys and values of all layers as [L, B, S, K, H], dequantised."""
    axes, found = cache_axes(CONFIG, apart), []
    for name in ("keys", "values"):
        layers = [getattr(one, name) for one in cache] if apart else getattr(cache, name)
        order = [getattr(axes, name).index(axis) for axis in TOKENS]
        each = np.stack([np.asarray(layer, np.float32).transpose(order) for layer in layers])
        scales = name.removesuffix("s") + "_scales"
        held = [getattr(one, scales) for one in cache] if apart else getattr(cache, scales)
        if held is not None and held[0] is not None:
            each *= np.stack([np.asarray(s) for s in held]).swapaxes(2, 3)[..., None]
        found.append(each)
    return found


@pytest.fixture(
    params=[
        ("apart", True, False, False), ("apart, int8", True, True, False),
        ("stacked", False, False, False), ("stacked, int8", False, True, False),
        ("by row", False, False, True), ("by row, int8", False, True, True),
    ],
    ids=lambda param: param[0],
)  # fmt: skip
def form(request):
    _, apart, int8, by_row = request.param
    sizes = CONFIG, "float32", BATCH, LENGTH
    return apart, int8, empty_cache(*sizes, apart=apart, int8=int8, by_row=by_row)


def random(seed, *shape):
    return np.asarray(jax.random.normal(jax.random.key(seed), shape))


def assert_close(found, expected, int8):
    """int8 is within half a step of 1/127 of the largest of a head."""
    bound = np.abs(expected).max(-1, keepdims=True) / 254 if int8 else 0
    assert (np.abs(found - expected) <= bound * 1.001 + 1e-7).all()


def test_tokens_are_written_at_their_positions_and_nowhere_else(form):
    apart, int8, cache = form
    k, v = random(1, BATCH, 2, 2, 4), random(2, BATCH, 2, 2, 4)
    positions = jnp.array([[0, 1], [6, 7], [LENGTH, LENGTH + 1]])  # the last row's are dropped
    if apart:
        cache = (cache[0], write_cache(CONFIG, cache[1], None, positions, k, v))
    else:
        cache = write_cache(CONFIG, cache, 1, positions, k, v)
    assert cache_length(CONFIG, cache) == LENGTH
    for found, new in zip(tokens_of(cache, apart), (k, v), strict=True):
        expected = np.zeros((2, BATCH, LENGTH, 2, 4), np.float32)
        expected[1, 0, :2], expected[1, 1, 6:] = new[0], new[1]
        assert_close(found, expected, int8)


def test_prompts_are_read_as_they_were_written(form):
    apart, int8, cache = form
    kv = random(1, 2, 2, 3, 2, 4), random(2, 2, 2, 3, 2, 4)  # [L, P, T, K, H]
    rows = jnp.array([2, BATCH])  # the second is padding of the prefill, and dropped
    layers = tuple(zip(*kv, strict=True)) if apart else kv
    cache = write_prompts(CONFIG, cache, rows, 2, layers)
    read = read_prompts(CONFIG, cache, rows, 5)
    read = tuple(np.stack(each) for each in zip(*read, strict=True)) if apart else read
    for found, whole, new in zip(read, tokens_of(cache, apart), kv, strict=True):
        assert found.shape == (2, 2, 5, 2, 4)
        assert_close(np.asarray(found)[:, 0, 2:], new[:, 0], int8)
        assert not np.asarray(found)[:, 0, :2].any()
        assert not whole[:, :2].any()


def test_the_small_caches_of_small_heads_are_written_by_row():
    heads = {size: dataclasses.replace(CONFIG, head_size=size, n_layers=32) for size in (64, 128)}
    most = 2**27 // (32 * 2 * 64)  # numbers of one byte
    assert is_by_row(heads[64], most, 1) and not is_by_row(heads[64], most + 1, 1)
    assert not is_by_row(heads[64], most, 2) and not is_by_row(heads[128], 1, 1)


def test_a_layer_is_read_up_to_its_room(form):
    apart, _, cache = form
    one = layer_of(CONFIG, cache[1], None, 5) if apart else layer_of(CONFIG, cache, 1, 5)
    for name in ("keys", "values", "key_scales", "value_scales"):
        array, names = getattr(one, name), getattr(cache_axes(CONFIG, apart), name)
        if array is not None:
            assert array.shape[names.index("length")] == 5 and array.ndim == len(names)
