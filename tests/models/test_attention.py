"""Blocked attention, the splash kernel, interpreted, and cuDNN's call compute plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from qalign_jax.models import blocked_attention
from qalign_jax.models.attention import (
    attend,
    cudnn_attend,
    packed_kernel,
    packed_mask,
    splash_attend,
)
from qalign_jax.models.blocked_attention import blocked_attend

LENGTH, HEAD = 256, 128


def inputs(heads, kv_heads, length=LENGTH, head_size=HEAD):
    rng = np.random.default_rng(0)
    sizes = (heads, kv_heads, kv_heads)
    q, k, v = (rng.normal(size=(2, length, n, head_size)).astype(np.float32) for n in sizes)
    segments = np.ones((2, length), np.int32)
    segments[0, 100:] = 2
    segments[1, 30:200] = 2
    segments[:, 240:] = 0
    return q, k, v, segments


def assert_equals_plain(kernel, q, k, v, segments, window, tolerance=1e-5):
    """Compares the output of kernel(q, k, v), and its gradients, with those of `attend`."""
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def plain(q, k, v):
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), packed_mask(segments, window))

    def gradients(attention, *qkv):
        def total(q, k, v):
            out = attention(q, k, v)
            return jnp.sum(out.astype(jnp.float32) * weights), out

        return jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv))

    for found, expected in zip(gradients(kernel, q, k, v), gradients(plain, q, k, v), strict=True):
        assert found.dtype == expected.dtype
        found, expected = (np.asarray(a, np.float32) for a in (found, expected))
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(2, 2, 0), (4, 2, 0), (2, 1, 20)])
def test_outputs_and_gradients_of_splash_equal_the_plain_ones(heads, kv_heads, window):
    *qkv, segments = inputs(heads, kv_heads)

    def splash(q, k, v):
        return splash_attend(q * HEAD**-0.5, k, v, segments, window, interpret=True)

    assert_equals_plain(splash, *qkv, segments, window)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "length", "window"),
    [(2, 2, 256, 0), (4, 2, 300, 0), (2, 1, 300, 20), (4, 2, 383, 150), (2, 2, 129, 128)],
)
def test_outputs_and_gradients_of_blocked_attention_equal_the_plain_ones(
    heads, kv_heads, length, window
):
    *qkv, segments = inputs(heads, kv_heads, length, head_size=16)
    assert_equals_plain(
        lambda q, k, v: blocked_attend(q, k, v, segments, window), *qkv, segments, window
    )


def test_blocked_attention_in_bfloat16_is_within_its_rounding_of_the_plain_one():
    *qkv, segments = inputs(4, 2, 300, head_size=16)
    q, k, v = (jnp.asarray(array, jnp.bfloat16) for array in qkv)
    kernel = functools.partial(blocked_attend, segment_ids=segments, window=0)
    assert_equals_plain(kernel, q, k, v, segments, 0, tolerance=1e-2)


@pytest.mark.parametrize("window", [0, 200])
@pytest.mark.parametrize("length", [1, 128, 300, 5000])
def test_the_blocks_of_a_row_are_few_and_hold_every_pair_that_attends(length, window):
    index = np.arange(length)
    distance = index[:, None] - index
    missing = (distance >= 0) & (distance < window if window else True)
    blocks = list(blocked_attention.blocks_of(length, window))
    for queries, keys in blocks:
        missing[queries, keys] = False
    assert not missing.any()
    assert len(blocks) <= 16


@pytest.mark.parametrize(
    ("kernel", "attention", "platform", "length", "head_size", "dtype"),
    [
        ("splash", "auto", "tpu", 512, 128, "bfloat16"),
        ("plain", "auto", "tpu", 500, 128, "bfloat16"),
        ("plain", "auto", "tpu", 512, 64, "bfloat16"),
        ("blocked", "auto", "cpu", 500, 64, "float32"),
        ("blocked", "blocked", "tpu", 512, 128, "bfloat16"),
        ("plain", "auto", "", 512, 128, "bfloat16"),
        ("plain", "plain", "cpu", 512, 128, "bfloat16"),
        ("splash", "splash", "cpu", 512, 128, "bfloat16"),
        ("plain", "plain", "tpu", 512, 128, "bfloat16"),
        ("cudnn", "auto", "gpu", 512, 128, "bfloat16"),
        ("plain", "auto", "gpu", 512, 128, "float32"),
        ("plain", "auto", "gpu", 512, 256, "bfloat16"),
        ("plain", "plain", "gpu", 512, 128, "bfloat16"),
    ],
)
def test_the_kernel_is_what_device_and_sizes_allow(
    kernel, attention, platform, length, head_size, dtype
):
    assert packed_kernel(attention, platform, length, head_size, dtype) == kernel


def test_sizes_that_splash_cannot_tile_are_refused():
    with pytest.raises(ValueError, match="multiples of 128, not 500 and 64"):
        packed_kernel("splash", "tpu", 500, 64, "bfloat16")
    with pytest.raises(ValueError, match="one of auto, plain, blocked, splash"):
        packed_kernel("flash", "tpu", 512, 128, "bfloat16")


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(2, 2, 0), (4, 2, 20)])
def test_what_is_asked_of_cudnn_is_what_plain_attention_computes(heads, kv_heads, window):
    q, k, v, segments = inputs(heads, kv_heads)
    mask = packed_mask(segments, window)
    expected = attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)
    found = cudnn_attend(q, k, v, mask, implementation="xla")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_on_gpus_cudnn_is_called_forwards_and_backwards(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)  # no GPU to query
    q, k = (jax.ShapeDtypeStruct((2, LENGTH, n, HEAD), jnp.bfloat16) for n in (4, 2))
    mask = jax.ShapeDtypeStruct((2, LENGTH, LENGTH), bool)

    def total(*arrays):
        return cudnn_attend(*arrays).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k, mask)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text
