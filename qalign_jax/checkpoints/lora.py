"""A LoRA adapter as PEFT saves it: merged into its base's tensors as they are read, or read and
written by itself.
"""

import math
import re

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from qalign_jax import files, schema
from qalign_jax.checkpoints.hf_weights import WEIGHTS
from qalign_jax.checkpoints.part import abstract_part
from qalign_jax.checkpoints.safetensors import TensorFiles, write_file
from qalign_jax.faults.checksums import check_sums
from qalign_jax.models.adapter import PARTS, Adapter
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.trainable import Trainable, trained_shapes

_WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Keys of adapter_config.json that go beyond W + scale * B A, each with the one value that is read.
_MUST_BE = {
    **{"peft_type": "LORA", "use_dora": False, "fan_in_fan_out": False, "bias": "none"},
    **dict.fromkeys(("alora_invocation_tokens", "layer_replication", "kasa_config")),
    **dict.fromkeys(("arrow_config", "monteclora_config", "use_bdlora")),
}
_CHANGES_ITS_BASE = re.compile("pissa.*|olora|corda|lora_ga")  # values of init_lora_weights
_RANK = schema.whole(1, 10**5)
_ALPHA = schema.number(-1e6, 1e6)
_CONFIG = {
    "r?": _RANK,
    "lora_alpha": _ALPHA,
    "alpha_pattern?": schema.Maybe({...: _ALPHA}),
    "use_rslora?": schema.Maybe(schema.FLAG),
}


def is_adapter(path) -> bool:
    """Whether `path` holds a PEFT adapter."""
    return (epath.Path(path) / "adapter_config.json").exists()


class MergedTensors:
    """The tensors of a base with an adapter merged in: read as TensorFiles are.

    W + scale * B A in f32, rounded once to the base's dtype; scale is alpha / r, or alpha / sqrt(r)
    with rsLoRA (Hu et al., arXiv 2106.09685; arXiv 2312.03732). Weights that the adapter holds
    whole (PEFT's `modules_to_save`) replace the base's.

    Raises:
      ValueError: an adapter of another kind, or one that does not belong to the base.
    """

    def __init__(self, base: TensorFiles, adapter):
        self.directory, self.entries = base.directory, base.entries
        self._base = base
        folder = epath.Path(adapter)
        check_sums(folder)
        self._config = _read_config(folder)
        self._files = _open(folder)
        self._pairs, self._whole = set(), set()
        for found in self._files.entries:
            name = found.removeprefix(_PREFIX)
            if name.endswith((_A, _B)):
                target = name.removesuffix(_A).removesuffix(_B)
                self._check_pair(folder, target)
                self._pairs.add(f"{target}.weight")
            elif self._shape(found) == self._base_shape(name):
                self._whole.add(name)
            else:
                raise ValueError(
                    f"{folder}: {found} {self._shape(found)} is not a part of {base.directory} "
                    "that can be merged; LoRA on linear layers and whole weights of the base's "
                    "shape can (merge it with peft's merge_and_unload otherwise)"
                )
        if not self._pairs:
            raise ValueError(f"{folder}: it holds no lora_A and lora_B weights")

    def adapter_fingerprint(self) -> str:
        """As TensorFiles.fingerprint, of the adapter's own weights."""
        return self._files.fingerprint()

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, merged, in the base's dtype."""
        if name in self._whole:
            return self._files.read(_PREFIX + name).astype(self.entries[name].dtype)
        weight = self._base.read(name)
        if name not in self._pairs:
            return weight
        target = name.removesuffix(".weight")
        a, b = (_read_finite(self._files, f"{_PREFIX}{target}{part}") for part in (_A, _B))
        delta = b.astype(np.float32) @ a.astype(np.float32)
        delta *= self._scale(target, len(a))
        delta += weight
        return delta.astype(weight.dtype)

    def _scale(self, target: str, rank: int) -> float:
        alpha = self._config["lora_alpha"]
        for pattern, other in (self._config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", target):
                alpha = other
                break
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _check_pair(self, folder, target: str) -> None:
        parts = [f"{_PREFIX}{target}{part}" for part in (_A, _B)]
        for part in parts:
            if part not in self._files.entries:
                raise ValueError(f"{folder}: {part} is missing")
        a, b = map(self._shape, parts)
        base = self._base_shape(f"{target}.weight")
        if len(a) != 2 or len(b) != 2 or not a[0] == b[1] > 0 or (b[0], a[1]) != base:
            raise ValueError(
                f"{folder}: the adapter of {target} has the shapes {a} and {b}; the weight in "
                f"{self.directory} has {base or 'no such name'}. Is it the adapter's base?"
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._files.entries[name].shape

    def _base_shape(self, name: str) -> tuple[int, ...] | None:
        entry = self._base.entries.get(name)
        return entry and entry.shape


def read_adapter(folder) -> Adapter:
    """The shape of PEFT's adapter, where it has one rank and one alpha on all layers.

    Raises:
      ValueError: another adapter, which can be merged at most.
    """
    folder = epath.Path(folder)
    config, found = _read_config(folder), _open(folder).entries
    file = folder / "adapter_config.json"
    remedy = (
        "such an adapter is not trained further or decoded beside its base; merge it into the "
        "base's Hugging Face directory first: "
        f"python -m qalign_jax.convert --source=BASE --adapter={folder} --target=DIR"
    )
    schema.check(config, {"r": _RANK}, str(file), "save the adapter again")
    for key in ("alpha_pattern", "rank_pattern", "modules_to_save", "layers_to_transform"):
        if config.get(key):
            raise ValueError(f"{file}: {key} is {config[key]!r}; {remedy}")
    names = {key[2]: _module(key) for key in WEIGHTS if len(key) == 3 and key[1] in PARTS}
    present = [key for key, name in names.items() if any(f".{name}." in each for each in found)]
    layers = {match[1] for each in found if (match := re.search(r"\.layers\.(\d+)\.", each))}
    wanted = {
        f"{_PREFIX}model.layers.{layer}.{names[key]}{end}"
        for key in present for layer in layers for end in (_A, _B)
    }  # fmt: skip
    if odd := sorted(wanted ^ found.keys()):
        raise ValueError(f"{folder}: {odd[0]} is not in all layers, or no matrix; {remedy}")
    try:
        return Adapter(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout") or 0.0,
            matrices=tuple(present),
            scaling="sqrt_rank" if config.get("use_rslora") else "rank",
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {remedy}") from None


def check_pairs(folder, config: LlamaConfig, adapter: Adapter) -> None:
    """Compares the names and shapes of PEFT's adapter with those that its base makes.

    Raises:
      ValueError: it is the adapter of another base.
    """
    entries = _open(epath.Path(folder)).entries
    for path, wanted in jax.tree_util.tree_leaves_with_path(
        trained_shapes(config, Trainable(adapter))[0]
    ):
        shape = wanted.shape[:0:-1]
        for name in _tensors_of(path, config):
            if name not in entries:
                raise ValueError(
                    f"{folder}: {name} is missing, of the base's {config.n_layers} layers. Is it "
                    "the adapter's base?"
                )
            if (found := entries[name].shape) != shape:
                raise ValueError(
                    f"{folder}: {name} has the shape {found}; the base, with rank {adapter.rank} "
                    f"of adapter_config.json, makes it {shape}. Is it the adapter's base?"
                )
    first = f"{_PREFIX}model.layers.{config.n_layers}."
    if more := [name for name in entries if name.startswith(first)]:
        raise ValueError(
            f"{folder}: {more[0]} is of a layer that the base, with {config.n_layers} layers, does "
            "not have. Is it the adapter's base?"
        )


def read_pairs(folder, config: LlamaConfig, adapter: Adapter, mesh: Mesh):
    """PEFT's adapter as the pairs of models/adapter.py, f32, on a mesh.

    Raises:
      ValueError: the adapter of a base with other shapes; values that are not finite.
      Damaged: the directory has SHA256SUMS, and a file is not as they say.
    """
    check_sums(folder)
    check_pairs(folder, config, adapter)
    tensors = _open(epath.Path(folder))

    def read(path, wanted):
        names = _tensors_of(path, config)
        values = np.stack([_read_finite(tensors, name).astype(np.float32).T for name in names])
        return jax.make_array_from_callback(values.shape, wanted.sharding, lambda at: values[at])

    wanted = abstract_part(config, Trainable(adapter), mesh)
    return jax.tree_util.tree_map_with_path(read, wanted)


def fingerprint(folder) -> str:
    """16 hexadecimal digits that change with the adapter's weights."""
    return _open(epath.Path(folder)).fingerprint()


def write(folder, adapter: Adapter, pairs, base: str) -> int:
    """Writes an adapter as PEFT reads it, in f32; returns the bytes of its weights.

    Args:
      base: the name of the base, for `base_model_name_or_path`.
    """
    folder, tensors = epath.Path(folder), {}
    for part, tree in pairs["layers"].items():
        for name, pair in tree.items():
            module = _module(("layers", part, name))
            for end, values in ((_A, pair["a"]), (_B, pair["b"])):
                for layer, each in enumerate(np.asarray(values)):
                    tensors[f"{_PREFIX}model.layers.{layer}.{module}{end}"] = each.T
    folder.mkdir(parents=True, exist_ok=True)
    size = write_file(folder / _WEIGHTS_FILE, tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.scaling == "sqrt_rank",
        "target_modules": [
            _module(key).rpartition(".")[2] for key in WEIGHTS if key[-1] in adapter.matrices
        ],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    files.write_json(folder / "adapter_config.json", config, indent=2)
    return size


def _tensors_of(path, config: LlamaConfig) -> list[str]:
    """The tensors, one a layer, of a leaf of pairs."""
    _, part, name, end = (each.key for each in path)
    inner = f"{_module(('layers', part, name))}{_A if end == 'a' else _B}"
    return [f"{_PREFIX}model.layers.{layer}.{inner}" for layer in range(config.n_layers)]


def _module(key: tuple[str, ...]) -> str:
    """The name in a layer of a matrix, like self_attn.q_proj."""
    return WEIGHTS[key][0].removeprefix("model.layers.{}.").removesuffix(".weight")


def _read_finite(tensors: TensorFiles, name: str) -> np.ndarray:
    values = tensors.read(name)
    if not np.isfinite(values.astype(np.float32)).all():
        raise ValueError(
            f"{tensors.directory}: {name} holds values that are not finite; take an earlier "
            "checkpoint of the adapter's training"
        )
    return values


def _open(folder: epath.Path) -> TensorFiles:
    return TensorFiles(folder, _WEIGHTS_FILE, "adapter_model.index.json")


def _read_config(folder) -> dict:
    file = folder / "adapter_config.json"
    if not file.exists():
        raise ValueError(f"{folder}: no LoRA adapter here, there is no adapter_config.json")
    remedy = "it is not a LoRA adapter's configuration; save the adapter again"
    config = files.read_object(file, remedy)
    schema.check(config, _CONFIG, str(file), remedy)
    for pattern in config.get("alpha_pattern") or {}:
        if not _is_pattern(pattern):
            raise ValueError(
                f"{file}: alpha_pattern has {pattern[:80]!r}; expected the name of a layer, or a "
                "regular expression of at most 200 characters with at most two of * + ? {, none "
                "of them behind a bracket: others may take for ever to match"
            )
    for key, meant in _MUST_BE.items():
        if config.get(key, meant) != meant:
            raise ValueError(
                f"{file}: {key} is {config[key]!r}; only {meant!r} is merged here. Merge it with "
                "peft's merge_and_unload, then convert the merged model"
            )
    if _CHANGES_ITS_BASE.fullmatch(str(begun := config.get("init_lora_weights"))):
        raise ValueError(
            f"{file}: init_lora_weights is {begun!r}, which takes the adapter's first values out "
            "of its base, so that it belongs to no base on disk. Save it with peft's "
            "path_initial_model_for_weight_conversion"
        )
    return config


def _is_pattern(text: str) -> bool:
    """Whether a text is a regular expression that is matched in no time."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    repeats = re.findall(r"[*+?{]", text)
    return len(text) <= 200 and len(repeats) <= 2 and not re.search(r"\)[*+?{]", text)
