"""Peak host memory of conversions on one CPU device, beyond what the device holds.

    python -m tests.benchmarks.conversion_memory

Writes a checkpoint of 1 GB in bfloat16, runs each conversion in its own process and prints the
maximum resident set size of each. On a CPU, device memory is host memory: the bytes of the model
and the peak of the same conversion of a tiny model are therefore subtracted. The remainder is also
given in multiples of the largest tensor, in the dtype on the device.
"""

import json
import math
import os
import pathlib
import sys
import tempfile

import jax.numpy as jnp
import numpy as np

from qalign_jax.checkpoints import hf_config, hf_weights
from qalign_jax.checkpoints.safetensors import write_files
from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.models.config import LlamaConfig

LARGE = LlamaConfig(32_000, 2048, 8, 16, 16, 5632, 128)
TINY = LlamaConfig(512, 64, 2, 4, 4, 128, 16)


def write_checkpoint(folder: pathlib.Path, config: LlamaConfig) -> None:
    folder.mkdir()
    texts = [f"{a} and {b} are {a + b}" for a in range(30) for b in range(30)]
    train_sentencepiece(texts, 300, folder / "tokenizer.model")
    tokenizer = load_tokenizer(folder)
    dtype = np.dtype(jnp.bfloat16)
    shapes = hf_weights.tensor_shapes(config)
    random = np.random.default_rng(0)
    values = (
        (name, random.standard_normal(shape, np.float32).astype(dtype))
        for name, shape in shapes.items()
    )
    write_files(folder, values, shapes, dtype, 10**9)
    text = json.dumps(hf_config.config_json(config, dtype, tokenizer, "paper"))
    (folder / "config.json").write_text(text)


def peak(*arguments: str) -> int:
    """Maximum resident set size of the process of a conversion, in bytes."""
    command = [sys.executable, "-m", "qalign_jax.convert", *arguments]
    process = os.posix_spawn(
        sys.executable, command, os.environ | {"JAX_PLATFORMS": "cpu"},
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)],
    )  # fmt: skip
    _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)}: status {status}")
    return usage.ru_maxrss * 1024


def main() -> None:
    largest = max(map(math.prod, hf_weights.tensor_shapes(LARGE).values()))
    conversions = {  # name: source, target, dtype, bytes per parameter on the device
        "in, bf16": ("hub", "ours", "bfloat16", 2),
        "in, bf16 -> f32": ("hub", "wide", "float32", 4),
        "out, bf16": ("ours", "back", "bfloat16", 2),
        "out, f32 -> bf16": ("wide", "narrow", "bfloat16", 2),
    }
    print(f"{LARGE.num_parameters:,} parameters, the largest tensor has {largest:,}\n")
    print("| conversion | device holds | peak | tiny model's peak | beside the model | tensors |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for size, config in (("tiny", TINY), ("large", LARGE)):
            (root / size).mkdir()
            write_checkpoint(root / size / "hub", config)
        for name, (source, target, dtype, width) in conversions.items():
            peaks = {
                size: peak(
                    f"--source={root / size / source}", f"--target={root / size / target}",
                    f"--dtype={dtype}",
                )
                for size in ("tiny", "large")
            }  # fmt: skip
            held = LARGE.num_parameters * width
            beside = peaks["large"] - peaks["tiny"] - held
            numbers = (held, peaks["large"], peaks["tiny"], beside)
            cells = " | ".join(f"{number / 1e6:,.0f} MB" for number in numbers)
            print(f"| {name} | {cells} | {beside / (largest * width):.1f} |", flush=True)


if __name__ == "__main__":
    main()
