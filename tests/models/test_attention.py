"""The splash kernel, interpreted, and the call of cuDNN compute plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from qalign_jax.models.attention import (
    attend,
    cudnn_attend,
    packed_kernel,
    packed_mask,
    splash_attend,
)

LENGTH, HEAD = 256, 128


def inputs(heads, kv_heads):
    rng = np.random.default_rng(0)
    sizes = (heads, kv_heads, kv_heads)
    q, k, v = (rng.normal(size=(2, LENGTH, n, HEAD)).astype(np.float32) for n in sizes)
    segments = np.ones((2, LENGTH), np.int32)
    segments[0, 100:] = 2
    segments[1, 30:200] = 2
    segments[:, 240:] = 0
    return q, k, v, segments


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(2, 2, 0), (4, 2, 0), (2, 1, 20)])
def test_outputs_and_gradients_equal_the_plain_ones(heads, kv_heads, window):
    *qkv, segments = inputs(heads, kv_heads)
    weights = np.random.default_rng(1).normal(size=(2, LENGTH, heads, HEAD)).astype(np.float32)

    def plain(q, k, v):
        out = attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), packed_mask(segments, window))
        return jnp.sum(out * weights), out

    def splash(q, k, v):
        out = splash_attend(q * HEAD**-0.5, k, v, segments, window, interpret=True)
        return jnp.sum(out * weights), out

    for found, expected in zip(
        jax.tree.leaves(jax.grad(splash, argnums=(0, 1, 2), has_aux=True)(*qkv)),
        jax.tree.leaves(jax.grad(plain, argnums=(0, 1, 2), has_aux=True)(*qkv)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kernel", "attention", "platform", "length", "head_size", "dtype"),
    [
        ("splash", "auto", "tpu", 512, 128, "bfloat16"),
        ("plain", "auto", "tpu", 500, 128, "bfloat16"),
        ("plain", "auto", "tpu", 512, 64, "bfloat16"),
        ("plain", "auto", "cpu", 512, 128, "bfloat16"),
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
    with pytest.raises(ValueError, match="one of auto, plain, splash"):
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
