"""config.json of a Hugging Face directory, read as transformers 4 and 5 write it, and written."""

import functools
import math
from typing import Any

import jax.numpy as jnp
from etils import epath

from qalign_jax import files, schema
from qalign_jax.data import prompts
from qalign_jax.models.config import LlamaConfig, RopeScaling

_REMEDY = "download it again"

# Keys of config.json that this model does not compute, each with the one value that is read.
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
    """The architecture from config.json of transformers 4 or 5.

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
    values = _values(file, raw, kind)
    try:
        return LlamaConfig(**values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {_REMEDY}") from None


def _values(file, raw: dict, kind: str) -> dict[str, Any]:
    """The fields of LlamaConfig."""
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
    return dict(
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
    """The prompt template of a model that `convert` exported; "paper" where there is none."""
    template = _read_json(path).get("prompt_template", "paper")
    where = f"{path}/config.json"
    schema.check(template, schema.TEXT, where, _REMEDY, "prompt_template")
    try:
        prompts.template_text(template)
    except ValueError as error:
        raise ValueError(f"{where}: prompt_template: {error}") from None
    return template


def config_json(config: LlamaConfig, dtype, tokenizer, template: str) -> dict:
    """The content of config.json, as transformers 4 and 5 read it.

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
        return files.read_object(file, _REMEDY)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or error})") from None


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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{file}: {key} is {value!r}; expected a number above 0")
    return float(value)


def _read_rope(file, raw: dict) -> dict:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{file}: the rope parameters are {rope!r}; expected an object")
    theta = _real(file, {"rope_theta": raw.get("rope_theta", 10_000.0)} | rope, "rope_theta")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    if kind == "linear":
        return {
            "rope_theta": theta,
            "rope_scaling": _scaling(file, "linear", _real(file, rope, "factor")),
        }
    if kind == "llama3":
        scaling = _scaling(
            file,
            "llama3",
            _real(file, rope, "factor"),
            _real(file, rope, "low_freq_factor"),
            _real(file, rope, "high_freq_factor"),
            _number(file, rope, "original_max_position_embeddings"),
        )
        return {"rope_theta": theta, "rope_scaling": scaling}
    raise ValueError(f"{file}: rope type {kind!r}; default, linear and llama3 are known")


def _scaling(file, *values) -> RopeScaling:
    try:
        return RopeScaling(*values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {_REMEDY}") from None
