"""Sizes of the LLaMA family by name."""

import dataclasses
from typing import NamedTuple

from qalign_jax.models.config import Execution, LlamaConfig, RopeScaling


class Preset(NamedTuple):
    config: LlamaConfig
    execution: Execution


def _size(vocab, d_model, layers, heads, kv_heads, d_ff, execution=Execution(), **more) -> Preset:
    head_size = more.pop("head_size", d_model // heads)
    config = LlamaConfig(vocab, d_model, layers, heads, kv_heads, d_ff, head_size, **more)
    return Preset(config, execution)


_DEMO = Execution(dtype="float32", remat="none", scan_layers=False)
_LLAMA31 = RopeScaling("llama3", factor=8.0, original_max_length=8192)

PRESETS: dict[str, Preset] = {
    # For tests and first tries; the vocabulary is set from the tokenizer.
    "tiny": _size(32_000, 64, 2, 4, 2, 160, Execution(dtype="float32"), max_length=2048),
    # The demo's small model, which is tuned, and the larger one, which it steers.
    "demo_small": _size(700, 128, 4, 4, 4, 344, _DEMO, max_length=256, init_scale=0.06),
    "demo_large": _size(700, 192, 4, 6, 6, 512, _DEMO, max_length=256, init_scale=0.05),
    # Ten times as large as the small one.
    "demo_larger": _size(700, 384, 6, 6, 6, 1024, _DEMO, max_length=256, init_scale=0.03),
    "smollm2_360m": _size(
        49_152, 960, 32, 15, 5, 2560, max_length=8192, rope_theta=100_000.0, tied=True
    ),
    # Has LLaMA2's tokenizer, so it steers LLaMA2.
    "tinyllama_1b": _size(32_000, 2048, 22, 32, 4, 5632, max_length=2048),
    "llama2_7b": _size(32_000, 4096, 32, 32, 32, 11_008),
    "llama2_13b": _size(32_000, 5120, 40, 40, 40, 13_824),
    "llama2_70b": _size(32_000, 8192, 80, 64, 8, 28_672),
    "llama3_8b": _size(128_256, 4096, 32, 32, 8, 14_336, max_length=8192, rope_theta=500_000.0),
    "llama31_8b": _size(
        128_256, 4096, 32, 32, 8, 14_336,
        max_length=131_072, rope_theta=500_000.0, rope_scaling=_LLAMA31,
    ),
    "mistral_7b": _size(
        32_000, 4096, 32, 32, 8, 14_336, max_length=32_768, sliding_window=4096
    ),
    "codellama_7b": _size(
        32_016, 4096, 32, 32, 32, 11_008, max_length=16_384, rope_theta=1_000_000.0
    ),
    # Continued from CodeLlama, with its vocabulary of 32,016.
    "llemma_7b": _size(32_016, 4096, 32, 32, 32, 11_008),
}  # fmt: skip


def preset(name: str, **changes) -> Preset:
    """The named size, with fields of its architecture changed.

    Raises:
      ValueError: a name that is not in the table.
    """
    if name not in PRESETS:
        raise ValueError(f"no model preset {name!r}; there are {', '.join(PRESETS)}")
    config, execution = PRESETS[name]
    return Preset(dataclasses.replace(config, **changes), execution)
