"""Attention over packed rows and over a cache, and rotary positions.

Shape letters as in llama.py.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length of pretraining.

    `kind` is "linear" (positions divided by `factor`) or "llama3" (low frequencies divided by
    `factor`, high ones kept, a ramp between them; Llama 3.1 model code).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192


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


def rotate(x: jax.Array, positions: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Rotates heads by their positions, in Hugging Face's half-split layout.

    Args:
      x: [B, T, heads, H]; positions: [B, T] int32; frequencies: [H/2] f32.
    """
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def packed_mask(segment_ids: jax.Array, window: int) -> jax.Array:
    """Who sees whom in packed rows, [B, T, T] bool: earlier tokens of the same document.

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


def cache_mask(positions: jax.Array, cache_length: int, window: int) -> jax.Array:
    """Which cached tokens a new token sees, [B, T, S] bool.

    Args:
      positions: [B, T] int32, the new tokens' positions; their own key is already in the cache.
    """
    distance = positions[:, :, None] - jnp.arange(cache_length)
    seen = distance >= 0
    return seen & (distance < window) if window else seen


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention, softmax in f32.

    Args:
      q: [B, T, N, H]; k, v: [B, S, K, H]; mask: [B, T, S] bool.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    batch, length, heads, head_size = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, head_size)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * head_size**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(batch, length, heads, head_size)
