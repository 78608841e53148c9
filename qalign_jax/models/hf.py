"""Hugging Face directories: config.json and safetensors, read straight into shards.

`WEIGHTS` is the whole mapping. A torch weight is [outputs, inputs]; ours is [inputs, outputs] with
the heads as axes of their own, and layers stacked in front. RoPE is half-split in both, so nothing
is permuted.
"""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from qalign_jax.models.attention import RopeScaling
from qalign_jax.models.llama import LlamaConfig, abstract_params
from qalign_jax.parallel.mesh import sharding_of

# our parameter -> the name there ({} is the layer), and how many of our axes are its inputs
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


def is_hf_directory(path) -> bool:
    """Whether `path` holds a Hugging Face model."""
    return (epath.Path(path) / "config.json").exists()


def read_config(path) -> LlamaConfig:
    """The model's shape from config.json of transformers 4 or 5.

    Raises:
      ValueError: an architecture or a rope type that is not of the LLaMA family, or missing keys.
    """
    file = epath.Path(path) / "config.json"
    try:
        raw = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error})") from None
    kind = raw.get("model_type")
    if kind not in ("llama", "mistral"):
        raise ValueError(f"{file}: model_type is {kind!r}; llama and mistral are known")
    try:
        heads = raw["num_attention_heads"]
        return LlamaConfig(
            vocab_size=raw["vocab_size"],
            d_model=raw["hidden_size"],
            n_layers=raw["num_hidden_layers"],
            n_heads=heads,
            n_kv_heads=raw.get("num_key_value_heads") or heads,
            d_ff=raw["intermediate_size"],
            head_size=raw.get("head_dim") or raw["hidden_size"] // heads,
            max_length=raw.get("max_position_embeddings", 4096),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            sliding_window=(raw.get("sliding_window") or 0) if kind == "mistral" else 0,
            tied=raw.get("tie_word_embeddings", False),
            **_read_rope(file, raw),
        )
    except KeyError as error:
        raise ValueError(f"{file}: the key {error} is missing") from None


def _read_rope(file, raw: dict) -> dict:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    if kind == "linear":
        return {"rope_theta": theta, "rope_scaling": RopeScaling("linear", float(rope["factor"]))}
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
        return {"rope_theta": theta, "rope_scaling": scaling}
    raise ValueError(f"{file}: rope type {kind!r}; default, linear and llama3 are known")


def read_params(path, config: LlamaConfig, mesh: Mesh, dtype=jnp.float32):
    """The parameters of a Hugging Face directory, sharded over `mesh`.

    Each device's part is read by itself from the files, so the host never holds more than one.

    Raises:
      ValueError: a tensor that is missing, has another shape, or lies in a broken file.
    """
    tensors = _Tensors(path)
    shapes, axes = abstract_params(config)
    names = {key: WEIGHTS[tuple(part.key for part in key)] for key, _ in _leaves(shapes)}
    readers = {}
    for key, leaf in _leaves(shapes):
        name, inputs = names[key]
        stacked = "{}" in name
        shape = leaf.shape[1:] if stacked else leaf.shape
        readers[key] = _reader(tensors, name, shape, inputs, stacked, config, leaf.shape)
    flat, structure = jax.tree_util.tree_flatten_with_path(shapes)
    axes = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    arrays = [
        jax.make_array_from_callback(
            leaf.shape,
            sharding_of(mesh, leaf_axes),
            lambda index, read=readers[key]: read(index).astype(dtype),
        )
        for (key, leaf), leaf_axes in zip(flat, axes)
    ]
    return jax.tree.unflatten(structure, arrays)


def _leaves(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _reader(tensors, name, shape, inputs, stacked, config, full) -> Callable:
    """A function from an index of our whole array (a tuple of slices) to its values."""
    padded = config.padded_vocab
    published = tuple(config.vocab_size if n == padded else n for n in shape)
    expected = published
    if inputs is not None:
        expected = (int(np.prod(published[inputs:])), int(np.prod(published[:inputs])))
    layers = range(full[0]) if stacked else [0]
    for layer in layers:
        tensors.check(name.format(layer), expected)

    def read(index):
        index = [range(*part.indices(n)) for part, n in zip(index, full)]
        wanted = index[1:] if stacked else index
        parts = [
            _part(tensors, name.format(i), wanted, shape, published, inputs)
            for i in (index[0] if stacked else [0])
        ]
        return np.stack(parts) if stacked else parts[0]

    return read


def _part(tensors, name, wanted, shape, published, inputs):
    """One layer's values at `wanted` ranges; rows that only pad the vocabulary are zeros."""
    real = [range(part.start, min(part.stop, limit)) for part, limit in zip(wanted, published)]
    if inputs is None:
        values = tensors.read(name, *(slice(r.start, max(r.start, r.stop)) for r in real))
    else:
        columns, rows = (
            _flat(real[:inputs], published[:inputs]),
            _flat(real[inputs:], published[inputs:]),
        )
        values = tensors.read(name, rows, columns).T.reshape([max(0, len(r)) for r in real])
    padding = [(0, len(part) - max(0, len(r))) for part, r in zip(wanted, real)]
    return np.pad(values, padding) if any(after for _, after in padding) else values


def _flat(ranges, sizes) -> slice:
    """The flat rows of (heads, head_size): only the first axis is ever split."""
    inner = int(np.prod(sizes[1:]))
    return slice(ranges[0].start * inner, max(ranges[0].start, ranges[0].stop) * inner)


class _Tensors:
    """The tensors of a directory by name, over one file or many with an index."""

    def __init__(self, path):
        self.path = epath.Path(path)
        index = self.path / "model.safetensors.index.json"
        single = self.path / "model.safetensors"
        if index.exists():
            files = json.loads(index.read_text())["weight_map"]
        elif single.exists():
            files = dict.fromkeys(self._open(single.name).keys(), single.name)
        else:
            raise ValueError(
                f"{self.path}: there is no model.safetensors and no index of several; a "
                "pytorch_model.bin is never unpickled here, save the model as safetensors first"
            )
        self._files = files
        self._handles = {}

    def _open(self, file: str):
        try:
            return safe_open(str(self.path / file), "numpy")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.path / file}: cannot be read ({error})") from None

    def _slice(self, name: str):
        if name not in self._files:
            raise ValueError(f"{self.path}: the tensor {name} is missing")
        file = self._files[name]
        if file not in self._handles:
            self._handles[file] = self._open(file)
        try:
            return self._handles[file].get_slice(name)
        except SafetensorError as error:
            raise ValueError(
                f"{self.path / file}: the tensor {name} is not in it ({error})"
            ) from None

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        found = tuple(self._slice(name).get_shape())
        if found != shape:
            raise ValueError(
                f"{self.path}: the tensor {name} has shape {found}, config.json makes it {shape}"
            )

    def read(self, name: str, *index: slice) -> np.ndarray:
        return np.asarray(self._slice(name)[index])
