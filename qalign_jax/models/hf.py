"""Hugging Face directories: config.json and safetensors, read into shards and written back.

`WEIGHTS` is the whole mapping, for both directions. A torch weight is [outputs, inputs]; ours is
[inputs, outputs] with the heads as axes of their own, and layers stacked in front. RoPE is
half-split in both, so nothing is permuted.
"""

import functools
import json
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from qalign_jax.models.attention import RopeScaling
from qalign_jax.models.llama import LlamaConfig, abstract_params
from qalign_jax.parallel.mesh import sharding_of
from qalign_jax.progress import Progress

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


# Buffers that old releases saved beside the weights; they follow from config.json.
BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")

# What config.json may say that this model does not compute: key -> the value that is meant here.
MUST_BE = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}


def is_hf_directory(path) -> bool:
    """Whether `path` holds a Hugging Face model."""
    return (epath.Path(path) / "config.json").exists()


def read_config(path) -> LlamaConfig:
    """The model's shape from config.json of transformers 4 or 5.

    Raises:
      ValueError: an architecture or a setting that is not of the LLaMA family, or missing keys.
    """
    file, raw = epath.Path(path) / "config.json", _read_json(path)
    if "stages" in raw:
        raise ValueError(f"{path} is a run's workdir; name one of its stages: {path}/<stage>")
    kind = raw.get("model_type")
    if kind not in ("llama", "mistral"):
        raise ValueError(f"{file}: model_type is {kind!r}; llama and mistral are known")
    for key, meant in MUST_BE.items():
        if raw.get(key, meant) not in (meant, None):
            raise ValueError(f"{file}: {key} is {raw[key]!r}; only {meant!r} is known here")
    try:
        return _shape(file, raw, kind)
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{file}: a value has the wrong type, or is missing ({error!r})") from None


def _shape(file, raw: dict, kind: str) -> LlamaConfig:
    number = functools.partial(_number, file, raw)
    heads, d_model = number("num_attention_heads"), number("hidden_size")
    kv_heads = number("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(
            f"{file}: num_key_value_heads is {kv_heads}, which does not divide the {heads} heads"
        )
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise ValueError(f"{file}: tie_word_embeddings is {tied!r}; expected true or false")
    return LlamaConfig(
        vocab_size=number("vocab_size"),
        d_model=d_model,
        n_layers=number("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_ff=number("intermediate_size"),
        head_size=number("head_dim", d_model // heads),
        max_length=number("max_position_embeddings", 4096),
        norm_eps=_real(file, raw, "rms_norm_eps", 1e-6),
        sliding_window=number("sliding_window", 0, 0) if kind == "mistral" else 0,
        tied=tied,
        **_read_rope(file, raw),
    )


def read_template(path) -> str:
    """The prompt template of a model that was trained here; the paper's where nothing is said."""
    template = _read_json(path).get("prompt_template", "paper")
    if not isinstance(template, str):
        raise ValueError(f"{path}/config.json: prompt_template is {template!r}; expected text")
    return template


def config_json(config: LlamaConfig, dtype, tokenizer, template: str) -> dict:
    """config.json of a model of ours, as transformers 4 and 5 read it.

    Both spellings are written where they differ (`rope_theta` and `rope_scaling` of 4,
    `rope_parameters` of 5; `torch_dtype` and `dtype`).
    """
    mistral = config.sliding_window > 0
    raw = {
        "architectures": ["MistralForCausalLM" if mistral else "LlamaForCausalLM"],
        "model_type": "mistral" if mistral else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "initializer_range": config.init_scale,
        "use_cache": True,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "dtype": jnp.dtype(dtype).name,
        "torch_dtype": jnp.dtype(dtype).name,
        "prompt_template": template,
    }
    if mistral:
        raw["sliding_window"] = config.sliding_window
    else:
        raw |= {"attention_bias": False, "mlp_bias": False}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_length,
            }
        raw["rope_scaling"] = rope | {"type": scaling.kind}  # the older key of transformers 4
        raw["rope_parameters"] = rope | {"rope_theta": config.rope_theta}
    return raw


def _read_json(path) -> dict:
    file = epath.Path(path) / "config.json"
    try:
        raw = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: expected an object, found {type(raw).__name__}")
    return raw


def _number(file, raw: dict, key: str, default: int | None = None, least: int = 1) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"{file}: the key {key!r} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 10**7:
        raise ValueError(f"{file}: {key} is {value!r}; expected a whole number from {least}")
    return value


def _real(file, raw: dict, key: str, default: float | None = None) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{file}: {key} is {value!r}; expected a number above 0")
    return float(value)


def _read_rope(file, raw: dict) -> dict:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = _real(file, {"rope_theta": raw.get("rope_theta", 10_000.0)} | rope, "rope_theta")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    if kind == "linear":
        return {
            "rope_theta": theta,
            "rope_scaling": RopeScaling("linear", _real(file, rope, "factor")),
        }
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            _real(file, rope, "factor"),
            _real(file, rope, "low_freq_factor"),
            _real(file, rope, "high_freq_factor"),
            _number(file, rope, "original_max_position_embeddings"),
        )
        return {"rope_theta": theta, "rope_scaling": scaling}
    raise ValueError(f"{file}: rope type {kind!r}; default, linear and llama3 are known")


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
    """Name -> shape of every tensor that the model has there, in the order of the layers."""
    shapes = {}
    for name, (key, _) in _names(config).items():
        shape, inputs = _published(config, key), WEIGHTS[key][1]
        if inputs is not None:
            shape = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
        shapes[name] = shape
    return shapes


def read_params(tensors, config: LlamaConfig, mesh: Mesh, dtype=jnp.float32):
    """The parameters of a directory, sharded over `mesh`, cast to `dtype`.

    A tensor is read once, its parts go to their devices, and it is forgotten: beside what its
    devices hold a host needs one tensor and the parts in flight, at most two tensors.

    Args:
      tensors: TensorFiles, or an adapter over them (models/lora.py).

    Raises:
      ValueError: as `check`, before any device is used.
    """
    check(tensors, config)
    shapes, axes = abstract_params(config)
    params = jax.tree.map(lambda _: None, shapes)
    names = _names(config)
    progress = Progress(f"reading {tensors.directory.name}", len(names), unit="tensor")
    for name in tensors.entries:
        if name not in names:
            continue
        key, layer = names[name]
        whole, leaf_axes = _leaf(shapes, key), _leaf(axes, key)
        shape = whole.shape if layer is None else whole.shape[1:]
        values = _to_ours(tensors.read(name), shape, WEIGHTS[key][1])
        sharding = sharding_of(mesh, leaf_axes if layer is None else leaf_axes[1:])
        part = jax.make_array_from_callback(shape, sharding, lambda index, v=values: v[index])
        parent = _leaf(params, key[:-1])
        if layer is None:
            parent[key[-1]] = part.astype(dtype)
        else:
            sharding = sharding_of(mesh, leaf_axes)
            if parent[key[-1]] is None:
                parent[key[-1]] = jnp.zeros(whole.shape, dtype, device=sharding)
            parent[key[-1]] = _insert(sharding)(parent[key[-1]], part, layer)
        parent[key[-1]].block_until_ready()  # or the host would run ahead, its tensors in tow
        del part, values
        progress.add()
    progress.close()
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
    """Name there -> our parameter and, in the stack of layers, which one."""
    names = {}
    for key, (name, _) in WEIGHTS.items():
        if key == ("head", "kernel") and config.tied:
            continue
        if "{}" in name:
            names |= {name.format(layer): (key, layer) for layer in range(config.n_layers)}
        else:
            names[name] = (key, None)
    # by layer, as the released checkpoints have them: the reader's host then forgets file by file
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
        for size, axis in zip(_leaf(shapes, key).shape, _leaf(axes, key))
        if axis != "layers"
    )


def _to_ours(values: np.ndarray, shape: tuple[int, ...], inputs: int | None) -> np.ndarray:
    """A tensor as [inputs..., outputs...]; rows that only pad the vocabulary are zeros."""
    if inputs is not None:
        values = values.T
    if values.size == math.prod(shape):
        return values.reshape(shape)
    return np.pad(values, [(0, padded - size) for padded, size in zip(shape, values.shape)])


@functools.cache
def _insert(sharding):
    def insert(whole, part, layer):
        return jax.lax.dynamic_update_index_in_dim(whole, part.astype(whole.dtype), layer, 0)

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)


@jax.jit
def _take(array, layer):
    return jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
