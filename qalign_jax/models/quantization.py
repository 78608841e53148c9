"""Weights of matrix products as decoding holds them, wide or int8, and int8 for cached tokens.

int8 is symmetric: the largest value of a channel becomes 127, and a float scale undoes it.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from qalign_jax.parallel.mesh import Parallelism

INT8 = "int8"

# The layers' matrices, and how many of the first axes of each are inputs.
INPUTS = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}


def check_dtypes(weights_dtype: str, cache_dtype: str = "") -> None:
    """Raises a ValueError where decoding cannot hold weights or caches in these dtypes."""
    for name, value in (("weights_dtype", weights_dtype), ("cache_dtype", cache_dtype)):
        if value not in ("", INT8):
            raise ValueError(
                f"{name}={value!r}: expected {INT8}, or nothing for the model's compute dtype"
            )


class Matrix(struct.PyTreeNode):
    """A weight of a matrix product, its inputs and its outputs each flattened to one axis.

    A TPU keeps the last two axes in tiles: an axis of heads there is padded, or the compiler copies
    all layers into another order before the first token.
    """

    values: jax.Array  # [..., inputs, outputs], of the compute dtype or int8
    scale: jax.Array | None  # [..., outputs] f32, what a channel of int8 values is multiplied by

    def gathered(self, parallel: Parallelism, axes: tuple[str, str]) -> "Matrix":
        """The weight of one layer, gathered over fsdp; `axes` are those of inputs and outputs."""
        scale = None if self.scale is None else parallel.gather(self.scale, axes[1:])
        return Matrix(parallel.gather(self.values, axes), scale)

    def product(self, x: jax.Array, inputs: int, outputs: tuple[int, ...]) -> jax.Array:
        """x times the weight.

        The scale comes after the product, whose sum over tensor shards so stays in x's dtype.

        Args:
          x: its last `inputs` axes are the weight's inputs.
          outputs: the shape of the outputs.
        """
        x = x.reshape(*x.shape[: x.ndim - inputs], -1)
        out = jnp.einsum("...i,io->...o", x, self.values.astype(x.dtype))
        if self.scale is not None:
            out = (out * self.scale).astype(x.dtype)
        return out.reshape(*out.shape[:-1], *outputs)


def held_matrix(
    weight: jax.Array, inputs: int, dtype: DTypeLike, *, leading: int = 0, int8: bool = False
) -> Matrix:
    """A weight as decoding holds it, in `dtype` or int8.

    Args:
      weight: `leading` axes, such as the layers', `inputs` axes of inputs, then those of outputs.
    """
    rows = math.prod(weight.shape[leading : leading + inputs])
    flat = weight.reshape(*weight.shape[:leading], rows, -1)
    return quantized_matrix(flat) if int8 else Matrix(flat.astype(dtype), None)


def quantized_matrix(values: jax.Array) -> Matrix:
    """int8 with a scale an output channel, of values [..., inputs, outputs].

    A value is within half a scale of what it was: 1/254 of the largest of its channel. The scale of
    a channel with a NaN or an infinity is NaN: int8 has neither.
    """
    wide = values.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=-2)  # on CPUs without the NaN
    scale = _scale(jnp.where(jnp.isfinite(wide).all(axis=-2), largest, jnp.nan))
    return Matrix(_rounded(wide, scale[..., None, :]), scale)


def quantized_heads(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys or values [..., H] as int8, and the scales [...] in x's dtype.

    Values are divided by the scale as it is rounded to x's dtype.
    """
    wide = x.astype(jnp.float32)
    scale = _scale(jnp.max(jnp.abs(wide), axis=-1)).astype(x.dtype)
    return _rounded(wide, scale[..., None].astype(jnp.float32)), scale


def _scale(largest: jax.Array) -> jax.Array:
    scale = largest / 127
    return jnp.where(scale == 0, 1.0, scale)


def _rounded(wide: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(wide / scale), -127, 127).astype(jnp.int8)
