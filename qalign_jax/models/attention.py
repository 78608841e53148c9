"""Attention over packed rows and over a cache, and rotary positions.

Shape letters as in llama.py.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from qalign_jax.models.config import ATTENTION, RopeScaling


def rope_frequencies(head_size: int, theta: float, scaling: RopeScaling | None) -> jax.Array:
    """Angle per position of each pair of a head's dimensions, [H/2], f32."""
    frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    # turns over the original context: few turns = low frequency
    turns = scaling.original_max_length * frequencies / (2 * jnp.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rotate(
    x: jax.Array, positions: jax.Array, frequencies: jax.Array, scale: float = 1.0
) -> jax.Array:
    """Rotates heads by their positions, in Hugging Face's half-split layout.

    Args:
      x: [B, T, heads, H]; positions: [B, T] int32; frequencies: [H/2] f32.
      scale: a factor on the result, before it is rounded to x's dtype.
    """
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    rotated = jnp.concatenate(rotated, axis=-1)
    return (rotated if scale == 1.0 else rotated * scale).astype(x.dtype)


def packed_mask(segment_ids: jax.Array, window: int) -> jax.Array:
    """Which tokens a token sees in packed rows, [B, T, T] bool: earlier ones of its document.

    Args:
      segment_ids: [B, T] int32, one number a document, 0 for padding.
      window: how many tokens back, itself included; 0 for all.
    """
    index = jnp.arange(segment_ids.shape[1])
    distance = index[:, None] - index[None, :]
    seen = distance >= 0
    if window:
        seen &= distance < window
    return seen & (segment_ids[:, :, None] == segment_ids[:, None, :])


def cache_mask(positions: jax.Array, room: int, window: int) -> jax.Array:
    """Which of the first `room` cached tokens a new token sees, [B, T, room] bool.

    Args:
      positions: [B, T] int32, the new tokens' positions; their own key is already in the cache.
    """
    distance = positions[:, :, None] - jnp.arange(room)
    seen = distance >= 0
    return seen & (distance < window) if window else seen


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention, softmax in f32.

    Args:
      q: [B, T, N, H]; k, v: [B, K, S, H]; mask: [B, T, S] bool.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    batch, length, heads, head_size = q.shape
    kv_heads = k.shape[1]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, head_size)
    scores = jnp.einsum("btkgh,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * head_size**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bksh->btkgh", weights, v).reshape(batch, length, heads, head_size)


_LETTERS = {"batch": "b", "kv_heads": "k", "length": "s", "head_size": "h"}


def attend_cache(q: jax.Array, cache, axes, mask: jax.Array) -> jax.Array:
    """As `attend`, to one layer's cache.

    Args:
      q: [B, T, N, H]; mask: [B, T, S] bool.
      cache: a models/cache.py Cache of one layer, with the logical axes that `axes` has.
    """
    batch, length, heads, head_size = q.shape
    kv_heads = cache.keys.shape[axes.keys.index("kv_heads")]
    groups, wanted = heads // kv_heads, q.dtype
    on_cpu = axes.keys != axes.values  # the orders of CPUs (models/cache.py)
    # for which XLA has no bf16 products with f32 sums
    dtype = jnp.float32 if on_cpu else q.dtype
    q = q.reshape(batch, length, kv_heads, groups, head_size).astype(dtype)
    own_keys, own_values = cache.keys.astype(dtype), cache.values.astype(dtype)
    keys, values = ("".join(_LETTERS[axis] for axis in each) for each in (axes.keys, axes.values))
    if on_cpu:
        q = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, groups * length, head_size)
        scores = _multiply_pairs(q, own_keys).reshape(batch, kv_heads, groups, length, -1)
    else:
        scores = jnp.einsum(f"btkgh,{keys}->bkgts", q, own_keys, preferred_element_type=jnp.float32)
    if cache.key_scales is not None:
        scores *= cache.key_scales[:, :, None, None]
    scores = jnp.where(mask[:, None, None], scores * head_size**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1)
    if cache.value_scales is not None:
        weights *= cache.value_scales[:, :, None, None]
    weights = weights.astype(dtype)
    if on_cpu:
        weights = weights.reshape(batch, kv_heads, groups * length, -1)
        out = _multiply_pairs(weights, own_values)
        out = out.reshape(batch, kv_heads, groups, length, head_size).transpose(0, 3, 1, 2, 4)
    else:
        out = jnp.einsum(f"bkgts,{values}->btkgh", weights, own_values)
    return out.reshape(batch, length, heads, head_size).astype(wanted)


def _multiply_pairs(one: jax.Array, other: jax.Array) -> jax.Array:
    """[B, K, M, I] times [B, K, I, O], for CPUs: over two axes of pairs XLA loops by itself, over
    one it calls a library, which is ten times as fast."""
    batch, kv_heads, *_ = one.shape
    one, other = (each.reshape(batch * kv_heads, *each.shape[2:]) for each in (one, other))
    return (one @ other).reshape(batch, kv_heads, one.shape[1], other.shape[2])


# Splash's tiles and the TPU's lanes need lengths and head sizes that are multiples of this.
LANES = 128


def packed_kernel(attention: str, platform: str, length: int, head_size: int, dtype: str) -> str:
    """The kernel of attention in packed rows: "plain", "blocked", "splash" or "cudnn".

    Args:
      attention: one of ATTENTION. "auto" is splash on a TPU, where the sizes allow it, cuDNN's
        kernel on a GPU (in 16 bits, with heads up to 128), blocked on a CPU, and plain elsewhere.

    Raises:
      ValueError: an unknown kind, or splash asked for on sizes that it cannot tile.
    """
    if attention not in ATTENTION:
        raise ValueError(f"attention={attention!r}; it is one of {', '.join(ATTENTION)}")
    tiles = length % LANES == 0 and head_size % LANES == 0
    if attention == "splash" and not tiles:
        raise ValueError(
            f"attention='splash' needs lengths and head sizes that are multiples of {LANES}, not "
            f"{length} and {head_size}; 'auto' falls back to plain"
        )
    if attention == "splash" or (attention == "auto" and platform == "tpu" and tiles):
        return "splash"
    if attention == "blocked" or (attention == "auto" and platform == "cpu"):
        return "blocked"
    narrow = jnp.dtype(dtype).itemsize == 2 and head_size % 8 == 0 and head_size <= 128
    return "cudnn" if attention == "auto" and platform == "gpu" and narrow else "plain"


def cudnn_attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """As `attend`, with k and v as [B, S, K, H] and without the scores in memory."""
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask[:, None], scale=q.shape[-1] ** -0.5, implementation=implementation
    )


def splash_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, window: int, interpret: bool
) -> jax.Array:
    """As `attend` with `packed_mask`, in tiles that never leave the chip.

    Its outputs are saved as "qkvo" where remat saves those (models/llama.py).

    Args:
      q: [B, T, N, H], scaled by H^-0.5 already; k, v: [B, T, K, H]; segment_ids: [B, T] int32.
      window: tokens back, itself included; 0 for all.
      interpret: runs the kernel without a TPU, slowly.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    # not above: every command would start a fifth of a second later
    from jax.experimental.pallas.ops.tpu import splash_attention

    _, length, heads, _ = q.shape
    kernel = _splash_kernel(length, heads, window, interpret)
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    ids = splash_attention.SegmentIds(q=segment_ids, kv=segment_ids)
    out: Any = jax.vmap(kernel)(q, k, v, ids)
    return out.swapaxes(1, 2)


@functools.lru_cache
def _splash_kernel(length: int, heads: int, window: int, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention

    shape = (length, length)
    if window:
        mask = splash_attention.LocalMask(shape, (window - 1, 0), 0)
    else:
        mask = splash_attention.CausalMask(shape)
    block = next(size for size in (512, 256, 128) if length % size == 0)
    names = ("q", "kv", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": block for name in names}
    sizes = splash_attention.BlockSizes(**blocks)
    with jax.ensure_compile_time_eval():  # its tables are constants outside of any trace
        return splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([mask] * heads),
            block_sizes=sizes, head_shards=1, q_seq_shards=1,
            residual_checkpoint_name="qkvo", interpret=interpret,
        )  # fmt: skip
