"""Attention in packed rows by blocks of queries, in plain JAX: what CPUs run.

Shape letters as in llama.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Queries of a block, at least, and blocks of a row, at most. Smaller blocks skip more of what
# causality masks, larger ones make better matrix products: on CPU 64 to 256 are equally fast.
# The blocks of a row are unrolled, so that compilation takes longer the more they are.
BLOCK, MOST_BLOCKS = 128, 16


def blocked_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, window: int
) -> jax.Array:
    """As `attend` with `packed_mask`, without the scores of whole rows in memory.

    A block of queries meets only the keys that causality and the window let it see. The backward
    pass computes the probabilities again, from the logarithm of their sum. What it keeps is saved
    as "qkvo" where remat saves those (models/llama.py).

    Args:
      q: [B, T, N, H]; k, v: [B, T, K, H]; segment_ids: [B, T] int32, 0 for padding.
      window: tokens back, itself included; 0 for all.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    out: Any = _attend(q, k, v, segment_ids, window)
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, segment_ids, window):
    return _forward(q, k, v, segment_ids, window)[0]


def _forward(q, k, v, segment_ids, window):
    queries, keys, values = _by_head(q, k), k.swapaxes(1, 2), v.swapaxes(1, 2)
    outs, log_sums = [], []
    for block, seen in blocks_of(q.shape[1], window):
        scores = _scores(queries, keys, segment_ids, window, block, seen)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        out = _product("bkgts,bksh->bkgth", weights.astype(v.dtype), values[:, :, seen])
        outs.append((out / total).astype(q.dtype))
        log_sums.append(largest + jnp.log(total))
    out = checkpoint_name(_by_position(jnp.concatenate(outs, axis=3)), "qkvo")
    log_sums = checkpoint_name(jnp.concatenate(log_sums, axis=3), "qkvo")
    return out, (q, k, v, segment_ids, out, log_sums)


def _backward(window, saved, gradient):
    q, k, v, segment_ids, out, log_sums = saved
    queries, keys, values = _by_head(q, k), k.swapaxes(1, 2), v.swapaxes(1, 2)
    # the derivative of the softmax' sum, one number a query
    shared = jnp.sum(out.astype(jnp.float32) * gradient, axis=-1, keepdims=True)
    shared, gradient = _by_head(shared, k), _by_head(gradient, k)
    dq = []
    dk, dv = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    for block, seen in blocks_of(q.shape[1], window):
        scores = _scores(queries, keys, segment_ids, window, block, seen)
        weights = jnp.exp(scores - log_sums[:, :, :, block])
        dout = gradient[:, :, :, block]
        dweights = _product("bkgth,bksh->bkgts", dout, values[:, :, seen])
        dscores = weights * (dweights - shared[:, :, :, block]) * q.shape[-1] ** -0.5
        dscores, weights = dscores.astype(q.dtype), weights.astype(q.dtype)
        dq.append(_product("bkgts,bksh->bkgth", dscores, keys[:, :, seen]).astype(q.dtype))
        dk = dk.at[:, :, seen].add(_product("bkgts,bkgth->bksh", dscores, queries[:, :, :, block]))
        dv = dv.at[:, :, seen].add(_product("bkgts,bkgth->bksh", weights, dout))
    dk, dv = (a.swapaxes(1, 2).astype(q.dtype) for a in (dk, dv))
    return _by_position(jnp.concatenate(dq, axis=3)), dk, dv, None


_attend.defvjp(_forward, _backward)


def blocks_of(length: int, window: int):
    """Pairs of slices: a block of queries, and the keys that any of them may see."""
    size = max(BLOCK, -(-length // MOST_BLOCKS))
    for first in range(0, length, size):
        end = min(first + size, length)
        yield slice(first, end), slice(max(0, first - window + 1) if window else 0, end)


def _scores(queries, keys, segment_ids, window, block, seen):
    """The scaled scores [B, K, G, T, S] f32 of a block, -1e30 where a key is not seen."""
    scores = _product("bkgth,bksh->bkgts", queries[:, :, :, block], keys[:, :, seen])
    distance = jnp.arange(block.start, block.stop)[:, None] - jnp.arange(seen.start, seen.stop)
    mask = distance >= 0
    if window:
        mask &= distance < window
    mask = mask & (segment_ids[:, block, None] == segment_ids[:, None, seen])
    return jnp.where(mask[:, None, None], scores * queries.shape[-1] ** -0.5, -1e30)


def _by_head(x, k):
    """[B, T, N, H] to [B, K, G, T, H], with the heads of k [B, S, K, H]."""
    batch, length, _, head_size = x.shape
    return x.reshape(batch, length, k.shape[2], -1, head_size).transpose(0, 2, 3, 1, 4)


def _by_position(x):
    """[B, K, G, T, H] to [B, T, N, H]."""
    batch, _, _, length, head_size = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, head_size)


def _product(equation, *arrays):
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)
