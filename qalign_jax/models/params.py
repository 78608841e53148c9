"""A model's parameters as a tree: abstract, random, cast, and how each is sharded."""

import functools

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh

from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.llama import Llama, compute_dtype
from qalign_jax.parallel.mesh import on_mesh, sharding_of, spec_of


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
    return jax.tree.map(
        lambda leaf, axes: jax.ShapeDtypeStruct(
            leaf.shape, dtype, sharding=sharding_of(mesh, axes)
        ),
        *abstract_params(config),
    )


def param_specs(config: LlamaConfig):
    """The PartitionSpec of every parameter."""
    axes = abstract_params(config)[1]
    return jax.tree.map(spec_of, axes, is_leaf=lambda x: isinstance(x, tuple))


def cast_params(params, dtype: str):
    """The parameters in the dtypes that a model of this compute dtype reads them in."""

    def cast(path, leaf):
        return leaf.astype(compute_dtype(path[-1].key, dtype))

    return jax.tree_util.tree_map_with_path(cast, params)


def _init(config: LlamaConfig, key: jax.Array):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Llama(config).init(key, tokens, tokens, tokens, tokens, method="loss")["params"]
