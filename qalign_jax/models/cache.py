"""The key-value cache of decoding: its layout in memory, and writing to it.

Shape letters as in llama.py; P prompts. `config` is a model's LlamaConfig.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def heads_first(config) -> bool:
    """Whether a cache has its heads before its positions, the order that attention reads on a TPU.

    In the other order the TPU compiler copies the whole cache several times a layer: grouped
    queries need the heads before the positions, one query a head needs them behind.
    """
    return config.n_kv_heads < config.n_heads


def cache_axes(config) -> tuple[str, ...]:
    """The logical axes of a cache, in its order."""
    if heads_first(config):
        return ("layers", "batch", "kv_heads", "length", "head_size")
    return ("layers", "batch", "length", "kv_heads", "head_size")


def layer_of(config, whole: jax.Array, layer) -> jax.Array:
    """One layer's part of a cache as [B, K, S, H]."""
    return whole[layer] if heads_first(config) else whole[layer].swapaxes(1, 2)


def empty_cache(config, dtype: str, batch: int, length: int):
    """A cache of zeros: keys and values, each [L, B, K, S, H] in the order of `cache_axes`."""
    sizes = dict(
        layers=config.n_layers, batch=batch, kv_heads=config.n_kv_heads, length=length,
        head_size=config.head_size,
    )  # fmt: skip
    shape = tuple(sizes[axis] for axis in cache_axes(config))
    return tuple(jnp.zeros(shape, jnp.dtype(dtype)) for _ in range(2))


def write_cache(config, cache, layer, positions, k, v):
    """Writes k and v [B, T, K, H] of one layer into the cache at each row's positions [B, T].

    The layout is pinned after the update: left free, the TPU compiler copies the whole cache
    every step (3.5 times the bytes).
    """
    rows = jnp.arange(positions.shape[0])[:, None]
    place = (rows, slice(None), positions) if heads_first(config) else (rows, positions)
    layout = Layout((0, 1, 2, 3, 4))
    return tuple(
        with_layout_constraint(
            whole.at[layer, *place].set(new.astype(whole.dtype), mode="drop"), layout
        )
        for whole, new in zip(cache, (k, v), strict=True)
    )


def write_prompts(config, cache, rows, kv):
    """Writes the keys and values [L, P, T, K, H] of prompts into the cache's rows [P]."""
    length = kv[0].shape[2]
    place = (slice(None), rows)
    if heads_first(config):
        place, kv = (*place, slice(None)), tuple(new.swapaxes(2, 3) for new in kv)
    return tuple(
        whole.at[*place, :length].set(new.astype(whole.dtype), mode="drop")
        for whole, new in zip(cache, kv, strict=True)
    )
