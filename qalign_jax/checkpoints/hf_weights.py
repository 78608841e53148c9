"""The weights of Hugging Face directories, read into shards and written back.

`WEIGHTS` is the whole mapping, for both directions. A torch weight is [outputs, inputs]; ours is
[inputs, outputs] with the heads as axes of their own, and layers stacked in front. RoPE is
half-split in both, so nothing is permuted.
"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qalign_jax.checkpoints import integrity
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.params import abstract_held_on, abstract_params, abstract_params_on
from qalign_jax.models.quantization import INT8, Matrix, held_matrix
from qalign_jax.parallel.mesh import sharding_of
from qalign_jax.progress import Progress

# our parameter -> the tensor's name ({} is the layer), and how many of our axes are its inputs
# (None: not a matrix product, stored as it is)
WEIGHTS: dict[tuple[str, ...], tuple[str, int | None]] = {
    ("embed", "embedding"): ("model.embed_tokens.weight", None),
    ("layers", "attention_norm", "scale"): ("model.layers.{}.input_layernorm.weight", None),
    ("layers", "attention", "query"): ("model.layers.{}.self_attn.q_proj.weight", 1),
    ("layers", "attention", "key"): ("model.layers.{}.self_attn.k_proj.weight", 1),
    ("layers", "attention", "value"): ("model.layers.{}.self_attn.v_proj.weight", 1),
    ("layers", "attention", "out"): ("model.layers.{}.self_attn.o_proj.weight", 2),
    ("layers", "mlp_norm", "scale"): ("model.layers.{}.post_attention_layernorm.weight", None),
    ("layers", "mlp", "gate"): ("model.layers.{}.mlp.gate_proj.weight", 1),
    ("layers", "mlp", "up"): ("model.layers.{}.mlp.up_proj.weight", 1),
    ("layers", "mlp", "down"): ("model.layers.{}.mlp.down_proj.weight", 1),
    ("norm", "scale"): ("model.norm.weight", None),
    ("head", "kernel"): ("lm_head.weight", 1),
}


# Buffers that old releases saved beside the weights; they follow from config.json.
BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")


def check(tensors, config: LlamaConfig) -> None:
    """Compares the names and shapes of a directory's tensors with those that config.json makes.

    Raises:
      ValueError: naming a tensor that is missing, not the model's, or of another shape.
    """
    where, wanted = tensors.directory, tensor_shapes(config)
    missing = [name for name in wanted if name not in tensors.entries]
    if missing:
        raise ValueError(f"{where}: the tensor {missing[0]} is missing{_more(missing)}")
    known = {*wanted, WEIGHTS["head", "kernel"][0]}  # tied models may save their head all the same
    unknown = [name for name in tensors.entries if name not in known and not name.endswith(BUFFERS)]
    if unknown:
        raise ValueError(
            f"{where}: the tensor {unknown[0]}{_more(unknown)} is not one of a "
            f"{config.n_layers}-layer LLaMA; left out, it would be another model"
        )
    for name, shape in wanted.items():
        found = tensors.entries[name].shape
        if found != shape:
            raise ValueError(
                f"{where}: the tensor {name} has shape {found}, config.json makes it {shape}"
            )


def stored_dtype(tensors) -> np.dtype:
    """The dtype of the weights, the widest where they differ: nothing is lost in it."""
    return functools.reduce(jnp.promote_types, {entry.dtype for entry in tensors.entries.values()})


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the model, in the order of the layers."""
    shapes = {}
    for name, (key, _) in _names(config).items():
        shape, inputs = _published(config, key), WEIGHTS[key][1]
        if inputs is not None:
            shape = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
        shapes[name] = shape
    return shapes


def read_params(
    tensors, config: LlamaConfig, mesh: Mesh, dtype=jnp.float32, weights_dtype: str | None = None
):
    """The parameters of a directory, sharded over `mesh`, cast to `dtype`.

    A tensor is read once, sent to its devices as it is stored and dropped, and the devices cast or
    quantise it: beside what its devices hold, a host needs one tensor and the parts in flight, at
    most two tensors, and no device ever holds the model in another form.

    Args:
      tensors: TensorFiles, or an adapter over them (checkpoints/lora.py).
      weights_dtype: as of `load_model`.

    Raises:
      ValueError: as `check`, before any device is used; or values that are not finite.
    """
    check(tensors, config)
    shapes, axes = abstract_params(config)
    if weights_dtype is None:
        wanted = abstract_params_on(config, mesh, dtype)
    else:
        wanted = abstract_held_on(config, mesh, dtype, int8=weights_dtype == INT8)
    params = jax.tree.map(lambda _: None, shapes)
    names = _names(config)
    progress = Progress(f"reading {tensors.directory.name}", len(names), unit="tensor")
    for name in tensors.entries:
        if name not in names:
            continue
        key, layer = names[name]
        shape, leaf_axes, whole = (_leaf(tree, key) for tree in (shapes, axes, wanted))
        shape = shape.shape if layer is None else shape.shape[1:]
        inputs = WEIGHTS[key][1]
        values = _to_ours(tensors.read(name), shape, inputs)
        sharding = sharding_of(mesh, leaf_axes if layer is None else leaf_axes[1:])
        part = jax.make_array_from_callback(shape, sharding, lambda index, v=values: v[index])
        parent = _leaf(params, key[:-1])
        if layer is None:
            parent[key[-1]] = part.astype(whole.dtype)
        else:
            if parent[key[-1]] is None:
                parent[key[-1]] = jax.tree.map(
                    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), whole
                )
            shardings = jax.tree.map(lambda leaf: leaf.sharding, whole)
            parent[key[-1]] = _insert(inputs, shardings)(parent[key[-1]], part, layer)
        # else the host reads ahead of its devices and holds many tensors
        jax.block_until_ready(parent[key[-1]])
        del part, values
        progress.add()
    progress.close()
    integrity.check_finite(params, tensors.directory)
    return params


def tensors_of(params, config: LlamaConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values) of every tensor in the order of `tensor_shapes`, one in memory at a time."""
    names = _names(config)
    progress = Progress("writing", len(names), unit="tensor")
    for name, (key, layer) in names.items():
        array = _leaf(params, key)
        if layer is not None:
            array = _take(array, layer)
        shape, inputs = _published(config, key), WEIGHTS[key][1]
        values = np.asarray(array)[tuple(slice(size) for size in shape)]
        if inputs is not None:
            values = values.reshape(math.prod(shape[:inputs]), -1).T
        yield name, values
        progress.add()
    progress.close()


def _names(config: LlamaConfig) -> dict[str, tuple[tuple[str, ...], int | None]]:
    """Tensor name -> our parameter and, in the stack of layers, which one."""
    names = {}
    for key, (name, _) in WEIGHTS.items():
        if key == ("head", "kernel") and config.tied:
            continue
        if "{}" in name:
            names |= {name.format(layer): (key, layer) for layer in range(config.n_layers)}
        else:
            names[name] = (key, None)
    # by layer, as in released checkpoints: a reader's host then needs one file at a time
    return dict(sorted(names.items(), key=lambda item: -1 if item[1][1] is None else item[1][1]))


def _leaf(tree, key: tuple[str, ...]):
    for part in key:
        tree = tree[part]
    return tree


def _published(config: LlamaConfig, key: tuple[str, ...]) -> tuple[int, ...]:
    """The shape of our parameter, in one layer, without the padding of the vocabulary."""
    shapes, axes = abstract_params(config)
    return tuple(
        config.vocab_size if axis.startswith("vocab") else size
        for size, axis in zip(_leaf(shapes, key).shape, _leaf(axes, key), strict=True)
        if axis != "layers"
    )


def _to_ours(values: np.ndarray, shape: tuple[int, ...], inputs: int | None) -> np.ndarray:
    """A tensor as [inputs..., outputs...]; rows that only pad the vocabulary are zeros."""
    if inputs is not None:
        values = values.T
    if values.size == math.prod(shape):
        return values.reshape(shape)
    return np.pad(
        values, [(0, padded - size) for padded, size in zip(shape, values.shape, strict=True)]
    )


@functools.cache
def _insert(inputs: int | None, shardings):
    """Puts a tensor into the stack of all layers, which may be a Matrix."""

    def insert(whole, part, layer):
        if isinstance(whole, Matrix) and inputs:
            int8 = whole.scale is not None
            part = held_matrix(part, inputs, whole.values.dtype, int8=int8)
        return jax.tree.map(
            lambda stack, new: jax.lax.dynamic_update_index_in_dim(
                stack, new.astype(stack.dtype), layer, 0
            ),
            whole,
            part,
        )

    return jax.jit(insert, donate_argnums=0, out_shardings=shardings)


@jax.jit
def _take(array, layer):
    return jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
