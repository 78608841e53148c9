"""The weights that a module reads, and the products with a layer's matrices."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from qalign_jax.models.adapter import MATRICES, Adapted, axis_of
from qalign_jax.models.multiply import multiply
from qalign_jax.models.quantization import INPUTS, Matrix
from qalign_jax.parallel.mesh import RULES, Parallelism


def parameter(module, name: str, shape, axes, scale: float | None) -> jax.Array:
    """Declares a parameter: global shape, logical axes, and initial standard deviation at once.

    `scale` None initialises with ones (norms). Returns the weight in its compute dtype with the
    axes that are split over fsdp gathered; over tensor it stays local.
    """
    parallel = module.parallel
    init = nn.initializers.ones if scale is None else nn.initializers.normal(scale)
    local = tuple(parallel.local(length, axis) for length, axis in zip(shape, axes, strict=True))
    value = module.param(name, nn.with_logical_partitioning(init, axes), local, jnp.float32)
    if name != "embedding":  # what is looked up is cast, not the table
        value = value.astype(compute_dtype(name, module.execution.dtype))
    return parallel.gather(value, axes)


def project(module, name: str, equation: str, x: jax.Array, shape, axes, noise) -> jax.Array:
    """Multiplies x by a weight of this name: all seven projections of a layer go through here.

    The weight is an array of `shape`, or a Matrix, which is held and not trained, or a Matrix with
    an adapter.

    Args:
      noise: keys [B] of this layer for the adapter's dropout; None leaves nothing out.
    """
    held = module.get_variable("params", name)
    weight = held.weight if isinstance(held, Adapted) else held
    if not isinstance(weight, Matrix):
        return multiply(equation, x, parameter(module, name, shape, axes, module.config.init_scale))
    parallel, inputs = module.parallel, INPUTS[name]
    ends = axes[0], axes[inputs]
    outputs = (-1, *shape[inputs + 1 :])  # its first axis may be local to the tensor shard
    out = weight.gathered(parallel, ends).product(x, inputs, outputs)
    if isinstance(held, Adapted):
        x = x.reshape(*x.shape[: x.ndim - inputs], -1)
        if noise is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(noise, MATRICES.index(name))
            x = drop(x, module.adapter.dropout, keys, parallel, ends[0])
        a = parallel.gather(held.a, (axis_of(ends[0]), "rank")).astype(x.dtype)
        b = parallel.gather(held.b, ("rank", axis_of(ends[1]))).astype(x.dtype)
        more = multiply("btr,ro->bto", multiply("bti,ir->btr", x, a), b)
        out += (more * held.scale.astype(x.dtype)).reshape(out.shape)
    return out


def drop(x: jax.Array, rate: float, keys: jax.Array, parallel: Parallelism, axis: str) -> jax.Array:
    """Dropout that is the same on every mesh.

    Args:
      x: [B, T, I], its last axis local where `axis` is split over tensor.
      keys: [B], one a row.
    """
    parts = parallel.size("tensor") if "tensor" in RULES[axis] else 1
    whole = (x.shape[1], x.shape[2] * parts)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, whole))(keys)
    if parts > 1:
        first = parallel.tensor_index() * x.shape[2]
        kept = jax.lax.dynamic_slice_in_dim(kept, first, x.shape[2], axis=2)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def compute_dtype(name: str, dtype: str):
    """The dtype that a parameter is read in: norms and the embedding stay f32."""
    return jnp.float32 if name in ("scale", "embedding") else jnp.dtype(dtype)
