"""A LoRA adapter as PEFT saves it, merged into its base model's tensors as they are read."""

import math
import re

import numpy as np
from etils import epath

from qalign_jax import files, schema
from qalign_jax.checkpoints.safetensors import TensorFiles

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Keys of adapter_config.json that go beyond W + scale * B A, each with the one value that is read.
_MUST_BE = {"peft_type": "LORA", "use_dora": False, "fan_in_fan_out": False, "bias": "none"}
_ALPHA = schema.number(-1e6, 1e6)
_CONFIG = {
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
        self._config = _read_config(folder)
        self._files = TensorFiles(folder, "adapter_model.safetensors", "adapter_model.index.json")
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
        a, b = (self._files.read(f"{_PREFIX}{target}{part}") for part in (_A, _B))
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
    return config


def _is_pattern(text: str) -> bool:
    """Whether a text is a regular expression that is matched in no time."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    repeats = re.findall(r"[*+?{]", text)
    return len(text) <= 200 and len(repeats) <= 2 and not re.search(r"\)[*+?{]", text)
