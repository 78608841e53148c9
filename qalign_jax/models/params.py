"""A model's parameters as a tree: abstract, random, cast, and how each is sharded."""

import functools

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh

from qalign_jax import mistakes
from qalign_jax.models.adapter import Adapted, Adapter, attach, attach_axes, pair_shapes
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.projection import compute_dtype
from qalign_jax.models.quantization import INPUTS, Matrix, held_matrix, quantized_matrix
from qalign_jax.parallel.mesh import Parallelism, abstract_on, on_mesh, spec_of


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: LlamaConfig, key: jax.Array):
    """Random parameters, f32, in a plain nested dict; the same on every mesh."""
    return meta.unbox(_init(config, key))


def random_params(config: LlamaConfig, mesh: Mesh, seed: int):
    """Random f32 parameters, made on the devices that hold them; the same on every mesh."""
    shardings = on_mesh(mesh, param_specs(config))
    return jax.jit(init_params, static_argnums=0, out_shardings=shardings)(
        config, jax.random.key(seed)
    )


@functools.lru_cache
def abstract_params(config: LlamaConfig):
    """The parameters' shapes and dtypes, and their logical axes, as two trees of one structure."""
    boxed = jax.eval_shape(lambda: _init(config, jax.random.key(0)))
    axes = jax.tree.map(
        lambda box: tuple(box.names), boxed, is_leaf=lambda x: isinstance(x, meta.AxisMetadata)
    )
    return meta.unbox(boxed), axes


def abstract_params_on(config: LlamaConfig, mesh: Mesh, dtype=jnp.float32):
    """The parameters as ShapeDtypeStructs with shardings."""
    shapes, axes = abstract_params(config)
    return abstract_on(mesh, jax.tree.map(lambda leaf: leaf.update(dtype=dtype), shapes), axes)


def param_specs(config: LlamaConfig):
    """The PartitionSpec of every parameter."""
    axes = abstract_params(config)[1]
    return jax.tree.map(spec_of, axes, is_leaf=is_axes)


def check_divides(config: LlamaConfig, mesh: Mesh, adapted: bool = False) -> None:
    """Raises a ValueError where the mesh does not split the parameters in equal parts.

    `adapted` counts those of an adapter, too.
    """
    parallel = Parallelism.manual(mesh)
    lengths = {
        "embed": config.d_model,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "mlp": config.d_ff,
        "vocab": config.padded_vocab,
    }
    flat = {config.n_heads * config.head_size, config.n_kv_heads * config.head_size, config.d_ff}
    pairs = [*lengths.items(), *(("adapter", size) for size in sorted(flat) if adapted)]
    mistakes.refuse(
        line for axis, length in pairs for line in mistakes.of("", parallel.local, length, axis)
    )


def cast_params(params, dtype: str):
    """The parameters in the dtypes that a model of this compute dtype reads them in."""

    def cast(path, leaf):
        return leaf.astype(compute_dtype(path[-1].key, dtype))

    return jax.tree_util.tree_map_with_path(cast, params)


def hold(config: LlamaConfig, params, dtype: str, *, apart: bool, int8: bool = False):
    """The parameters as decoding holds them: each is read once a token, and none is reordered.

    The weights of the layers' products become Matrix, the tables of embedding and head are cast,
    norms stay f32, and adapters are cast. What is held already stays as it is, or becomes int8.

    Args:
      dtype: the compute dtype.
      apart: whether the layers become a tuple of trees, or stay stacked.
      int8: whether the matrices become int8. The tables do not: a few of a hundred bytes, and an
        error in every logit.
    """

    def one(path, leaf):
        name = path[-1].key
        if isinstance(leaf, Adapted):
            a, b = leaf.a.astype(dtype), leaf.b.astype(dtype)
            return Adapted(one(path, leaf.weight), a, b, leaf.scale)
        if isinstance(leaf, Matrix):
            return quantized_matrix(leaf.values) if int8 and leaf.scale is None else leaf
        if name not in INPUTS:
            return leaf.astype(_table_dtype(name, dtype))
        return held_matrix(leaf, INPUTS[name], dtype, leading=1, int8=int8)

    if isinstance(params["layers"], tuple):
        return params
    held = jax.tree_util.tree_map_with_path(one, params, is_leaf=_is_weight)
    return _split(held, config.n_layers, lambda leaf, layer: leaf[layer]) if apart else held


def hold_and_free(config: LlamaConfig, params, dtype: str, mesh: Mesh, *, int8: bool = False):
    """As `hold` of stacked layers, one leaf at a time: its own array is deleted before the next.

    Args:
      params: as `init` makes them, on the mesh; they cannot be used afterwards.
    """

    def one(path, leaf, wanted):
        name = path[-1].key
        if isinstance(wanted, Matrix):
            shardings = jax.tree.map(lambda shape: shape.sharding, wanted)
            held = _hold_matrix(INPUTS[name], dtype, int8, shardings)(leaf)
        elif leaf.dtype == wanted.dtype:
            return leaf
        else:
            held = leaf.astype(wanted.dtype)
        jax.block_until_ready(held)
        leaf.delete()
        return held

    wanted = abstract_held_on(config, mesh, dtype, int8=int8)
    return jax.tree_util.tree_map_with_path(one, params, wanted)


def unhold_and_free(config: LlamaConfig, params, dtype: str, mesh: Mesh):
    """The inverse of `hold_and_free`: parameters as `init` makes them, adapters merged.

    int8 is dequantised; W + scale A B is computed in f32 and rounded once to `dtype`. Norms stay
    f32.

    Args:
      params: as `hold` makes them of stacked layers, on the mesh, with adapters or without; they
        cannot be used afterwards.
    """

    def one(path, leaf, wanted):
        name = path[-1].key
        wide = jnp.dtype(jnp.float32 if name == "scale" else dtype)
        if isinstance(leaf, Matrix | Adapted):
            made = _unhold(wanted.shape, wide.name, wanted.sharding)(leaf)
        elif leaf.dtype == wide:
            return leaf
        else:
            made = leaf.astype(wide)
        jax.block_until_ready(made)
        jax.tree.map(lambda each: each.delete(), leaf)
        return made

    wanted = abstract_params_on(config, mesh)
    return jax.tree_util.tree_map_with_path(one, params, wanted, is_leaf=_is_weight)


@functools.cache
def _unhold(shape: tuple[int, ...], dtype: str, sharding):
    def layer(leaf):
        matrix = leaf.weight if isinstance(leaf, Adapted) else leaf
        wide = matrix.values.astype(jnp.float32)
        if matrix.scale is not None:
            wide *= matrix.scale
        if isinstance(leaf, Adapted):
            a, b = (each.astype(jnp.float32) for each in (leaf.a, leaf.b))
            wide += leaf.scale * jnp.matmul(a, b, precision="highest")
        return wide.astype(dtype)

    # a layer at a time: all of them in f32 may be more than the model
    return jax.jit(lambda leaf: jax.lax.map(layer, leaf).reshape(shape), out_shardings=sharding)


@functools.cache
def _hold_matrix(inputs: int, dtype: str, int8: bool, shardings):
    hold_one = functools.partial(held_matrix, inputs=inputs, dtype=dtype, leading=1, int8=int8)
    return jax.jit(hold_one, out_shardings=shardings)


def _table_dtype(name: str, dtype: str):
    """The dtype of what is no matrix: of a norm, or of a table that decoding reads."""
    return jnp.dtype("float32" if name == "scale" else dtype)


def abstract_held(
    config: LlamaConfig, dtype: str, *, int8: bool = False, adapter: Adapter | None = None
):
    """The shapes and dtypes of what `hold` makes of stacked layers."""
    make = functools.partial(hold, config, dtype=dtype, apart=False, int8=int8)
    held = jax.eval_shape(make, abstract_params(config)[0])
    if adapter is None:
        return held
    pairs = pair_shapes(adapter, held)
    return jax.eval_shape(lambda held, pairs: make(attach(adapter, held, pairs)), held, pairs)


def abstract_held_on(config: LlamaConfig, mesh: Mesh, dtype: str, *, int8: bool = False):
    """As `abstract_held`, with shardings."""
    shapes = abstract_held(config, dtype, int8=int8)
    return abstract_on(mesh, shapes, held_axes(config, apart=False, int8=int8))


def held_axes(
    config: LlamaConfig, *, apart: bool, int8: bool = False, adapter: Adapter | None = None
):
    """The logical axes of what `hold` returns, a tuple in place of each array."""

    def one(path, axes):
        name = path[-1].key
        if name not in INPUTS:
            return axes
        layers, *rest = axes
        outputs = rest[INPUTS[name]]
        scale = (layers, outputs) if int8 else None
        return Matrix((layers, rest[0], outputs), scale)  # pyright: ignore[reportArgumentType]

    axes = abstract_params(config)[1]
    held = jax.tree_util.tree_map_with_path(one, axes, is_leaf=is_axes)
    if adapter:
        held = attach_axes(adapter, held)
    if not apart:
        return held
    return _split(held, config.n_layers, lambda axes, layer: axes[1:])


def _split(held, layers: int, take):
    """A tuple of trees in place of the stack of layers."""
    apart = [
        jax.tree.map(lambda leaf, i=i: take(leaf, i), held["layers"], is_leaf=is_axes)
        for i in range(layers)
    ]
    return {**held, "layers": tuple(apart)}


def _is_weight(node) -> bool:
    return isinstance(node, Matrix | Adapted)


def is_axes(node) -> bool:
    """Whether a node of a tree is the logical axes of one array."""
    return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)


def _init(config: LlamaConfig, key: jax.Array):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Llama(config).init(key, tokens, tokens, tokens, tokens, method="loss")["params"]
