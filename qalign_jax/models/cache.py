"""The key-value cache of decoding: its order in memory, reading it and writing to it.

Shape letters as in llama.py; P prompts. `config` is a model's LlamaConfig.

A cache is one `Cache` with the layers in front where a loop runs over them, as on TPUs, or a tuple
with one a layer where the layers are `apart`: on a CPU a loop copies each layer's part out.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental.layout import Layout, with_layout_constraint

from qalign_jax.models.attention import LANES
from qalign_jax.models.quantization import quantized_heads


class Cache(struct.PyTreeNode):
    """Keys and values in the order of `cache_axes`; int8 ones with a scale a token and head."""

    keys: Any
    values: Any
    key_scales: Any = None
    value_scales: Any = None
    # how tokens are written: False one by one, True with their whole row (`write_cache`)
    by_row: bool = struct.field(pytree_node=False, default=False)

    def map(self, function: Callable, *others: "Cache") -> "Cache":
        """A Cache of function(own, others' ...), where this one has arrays."""
        made = {
            name: function(*(getattr(cache, name) for cache in (self, *others)))
            for name in ("keys", "values", "key_scales", "value_scales")
            if getattr(self, name) is not None
        }
        return self.replace(**made)


def cache_axes(config, apart: bool) -> Cache:
    """The logical axes of one layer's cache, a tuple in place of each array.

    On a CPU keys have their positions last, the order of a product with them. On a TPU the last
    axis lies in lanes of 128: heads of that size fill them, for others the positions do.
    """
    scales = ("batch", "kv_heads", "length")
    by_token, by_head = (*scales, "head_size"), ("batch", "kv_heads", "head_size", "length")
    if apart:
        return Cache(by_head, by_token, scales, scales)
    order = by_head if config.head_size % LANES else by_token
    return Cache(order, order, scales, scales)


def whole_axes(config, apart: bool, int8: bool, by_row=False) -> Cache | tuple[Cache, ...]:
    """The logical axes of a whole cache, in its own structure."""
    axes = cache_axes(config, apart).replace(by_row=by_row)
    if not int8:
        axes = axes.replace(key_scales=None, value_scales=None)
    return (axes,) * config.n_layers if apart else axes.map(lambda names: ("layers", *names))


def is_by_row(config, entries: int, itemsize: int) -> bool:
    """Whether a cache is written by rows on a TPU.

    The compiler copies the whole array for every token that is written where its positions are the
    last axis, if the array is small (measured with libtpu 0.0.52, up to 128 MiB).

    Args:
      entries: rows and positions of a device, multiplied, and by its share of the heads.
      itemsize: bytes of a number.
    """
    size = config.n_layers * config.n_kv_heads * config.head_size * entries * itemsize
    return bool(config.head_size % LANES) and size <= 2**27


def empty_cache(
    config, dtype: str, batch: int, length: int, *, apart: bool, int8=False, by_row=False
):
    """A cache of zeros; int8 with scales of `dtype`, else of `dtype` itself."""
    sizes = dict(
        layers=config.n_layers, batch=batch, kv_heads=config.n_kv_heads, length=length,
        head_size=config.head_size,
    )  # fmt: skip

    def one(axes: Cache) -> Cache:
        kind = "int8" if int8 else dtype
        held = Cache(kind, kind, dtype, dtype)
        return axes.map(lambda names, kind: jnp.zeros([sizes[n] for n in names], kind), held)

    axes = whole_axes(config, apart, int8, by_row)
    return tuple(one(each) for each in axes) if isinstance(axes, tuple) else one(axes)


def cache_length(config, cache) -> int:
    """S of a cache."""
    if isinstance(cache, tuple):
        return cache[0].values.shape[cache_axes(config, True).values.index("length")]
    return cache.values.shape[1 + cache_axes(config, False).values.index("length")]


def write_cache(config, cache: Cache, layer, positions, k, v) -> Cache:
    """Writes k and v [B, T, K, H] of one layer into the cache at each row's positions [B, T].

    A token is written where it belongs, but for scales, which are few, and caches `by_row`: their
    rows of a layer are written anew, with the token in them.

    Args:
      cache: of all layers, or where `layer` is None of this one.
    """

    def put(whole, new, names):
        if "head_size" in names and layer is None:
            index = {"batch": jnp.arange(len(positions))[:, None], "length": positions}
            place = tuple(index.get(name, slice(None)) for name in names)
            return whole.at[place].set(new, mode="drop")
        if "head_size" in names and not cache.by_row:
            return _token_writer(names)(whole, layer, positions, new)
        own = whole if layer is None else whole[layer]
        axes = "".join(_LETTERS[name] for name in names)
        at = positions[:, :, None] == jnp.arange(own.shape[names.index("length")])
        made = "btkh"[: new.ndim]
        placed = jnp.einsum(f"bts,{made}->{axes}", at.astype(new.dtype), new)
        written = jnp.expand_dims(
            at.any(axis=1), [axes.index(each) for each in axes if each in "kh"]
        )
        own = jnp.where(written, placed, own)
        return own if layer is None else jax.lax.dynamic_update_index_in_dim(whole, own, layer, 0)

    return cache.map(put, _as_held(cache, k, v), cache_axes(config, layer is None))


@functools.cache
def _token_writer(names: tuple[str, ...]) -> Callable:
    """What writes [B, T, K, H] at a layer's positions [B, T], without a copy of the whole on a TPU.

    The compiler would make one for every token: to write all heads as one slice, for which it moves
    them next to each other; to batch the index arrays of several models; or into another layout.

    Args:
      names: the axes of one layer.
    """

    def write(whole, layer, positions, new, *models):
        index = {
            "batch": jnp.arange(new.shape[-4])[:, None, None],
            "kv_heads": jnp.arange(new.shape[-2]),
            "length": positions[:, :, None],
        }
        place = [index.get(name, slice(None)) for name in names]
        written = whole.at[*models, layer, *place].set(new, mode="drop")
        return with_layout_constraint(written, Layout(tuple(range(whole.ndim))))

    @jax.custom_batching.custom_vmap
    def one(whole, layer, positions, new):
        return write(whole, layer, positions, new)

    @one.def_vmap
    def _(models, batched, whole, layer, positions, new):
        assert batched == [True, False, False, True], "a cache a model, of the same rows"
        return write(whole, layer, positions, new, jnp.arange(models)[:, None, None, None]), True

    return one


def write_prompts(config, cache, rows, start: int, kv):
    """Writes keys and values of prompts into the cache's rows [P], from position `start` on.

    Args:
      kv: a pair of [L, P, T, K, H]; where layers are apart, a pair of [P, T, K, H] a layer.
    """

    def write(cache: Cache, kv, apart: bool) -> Cache:
        def put(whole, new, names):
            order = [_WRITTEN.index(name) for name in names]
            place: list[Any] = [slice(None)] * len(names)
            place[names.index("batch")] = rows
            place[names.index("length")] = slice(start, start + new.shape[1 if apart else 2])
            if not apart:
                order, place = [0, *(axis + 1 for axis in order)], [slice(None), *place]
            return whole.at[tuple(place)].set(new.transpose(order), mode="drop")

        return cache.map(put, _as_held(cache, *kv), cache_axes(config, apart))

    if isinstance(cache, tuple):
        return tuple(write(one, new, True) for one, new in zip(cache, kv, strict=True))
    return write(cache, kv, False)


def read_prompts(config, cache, rows, length: int):
    """Keys and values of the first `length` positions of rows [P], as `write_prompts` takes them.

    Rows past the end of the cache are those of its last row.
    """

    def read(cache: Cache, apart: bool):
        def get(whole, names):
            batch = names.index("batch") + (not apart)
            part = jax.lax.slice_in_dim(
                whole, 0, length, axis=names.index("length") + (not apart)
            ).take(rows, axis=batch, mode="clip")
            order = [names.index(name) for name in _WRITTEN[: len(names)]]
            return part.transpose(order if apart else [0, *(axis + 1 for axis in order)])

        found = cache.map(get, cache_axes(config, apart))
        return (
            _as_read(found.keys, found.key_scales),
            _as_read(found.values, found.value_scales),
        )

    if isinstance(cache, tuple):
        return tuple(read(one, True) for one in cache)
    return read(cache, False)


# The axes of the keys and values that a layer makes.
_WRITTEN = ("batch", "length", "kv_heads", "head_size")
_LETTERS = {"batch": "b", "length": "s", "kv_heads": "k", "head_size": "h"}


def layer_of(config, cache: Cache, layer, room: int) -> Cache:
    """One layer's cache, the first `room` positions of every row.

    Args:
      cache: of all layers, or where `layer` is None of this one.
    """

    def part(whole, names):
        sizes = dict(zip(names, whole.shape[-len(names) :], strict=True)) | {"length": room}
        if layer is None:
            return jax.lax.slice(whole, [0] * len(names), list(sizes.values()))
        # one slice: of two, the TPU compiler copies what the first takes
        start = [layer] + [0] * len(names)
        return jax.lax.dynamic_slice(whole, start, [1, *sizes.values()])[0]

    return cache.map(part, cache_axes(config, layer is None))


def _as_held(cache: Cache, k: jax.Array, v: jax.Array) -> Cache:
    """Keys and values in the dtypes of a cache."""
    if cache.key_scales is None:
        return Cache(k.astype(cache.keys.dtype), v.astype(cache.values.dtype))
    (k, k_scales), (v, v_scales) = quantized_heads(k), quantized_heads(v)
    return Cache(k, v, k_scales, v_scales)


def _as_read(values: jax.Array, scales: jax.Array | None) -> jax.Array:
    return values if scales is None else values.astype(scales.dtype) * scales[..., None]
