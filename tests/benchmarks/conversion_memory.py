"""Peak host memory of conversions and of int8 loading on one CPU device, beside what it holds.

    python -m tests.benchmarks.conversion_memory
    python -m tests.benchmarks.conversion_memory --only=llama2_7b

Writes a checkpoint of 1 GB in bfloat16, runs each of them in its own process and prints the
maximum resident set size of each. On a CPU, device memory is host memory: the bytes of the model
and the peak of the same conversion of a tiny model are therefore subtracted. The remainder is also
given in multiples of the largest tensor, in the dtype on the device.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from qalign_jax.checkpoints import hf_config, hf_weights
from qalign_jax.checkpoints.safetensors import SINGLE, write_files
from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.params import abstract_held
from qalign_jax.models.presets import preset

LARGE = LlamaConfig(32_000, 2048, 8, 16, 16, 5632, 128)
TINY = LlamaConfig(512, 64, 2, 4, 4, 128, 16)


def write_checkpoint(folder: pathlib.Path, config: LlamaConfig, zeros: bool = False) -> None:
    folder.mkdir(parents=True)
    texts = [f"{a} and {b} are {a + b}" for a in range(30) for b in range(30)]
    train_sentencepiece(texts, 300, folder / "tokenizer.model")
    tokenizer = load_tokenizer(folder)
    dtype = np.dtype(jnp.bfloat16)
    shapes = hf_weights.tensor_shapes(config)
    if zeros:
        write_holes(folder / SINGLE, shapes)
    else:
        random = np.random.default_rng(0)
        values = (
            (name, random.standard_normal(shape, np.float32).astype(dtype))
            for name, shape in shapes.items()
        )
        write_files(folder, values, shapes, dtype, 10**9)
    text = json.dumps(hf_config.config_json(config, dtype, tokenizer, "paper"))
    (folder / "config.json").write_text(text)


def write_holes(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros in bfloat16 that takes its header's room on a disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


LOAD = """
import sys
from qalign_jax.checkpoints.model import load_model
model = load_model(sys.argv[1], dtype="bfloat16", weights_dtype="int8")
"""


def peak(*arguments: str) -> int:
    """Maximum resident set size of a process of Python, in bytes."""
    command = [sys.executable, *arguments]
    process = os.posix_spawn(
        sys.executable, command, os.environ | {"JAX_PLATFORMS": "cpu"},
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)],
    )  # fmt: skip
    _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)}: status {status}")
    return usage.ru_maxrss * 1024


def print_row(name: str, held: int, peaks: dict[str, int], tensor: int) -> None:
    """Peaks are those of the model and of the tiny one; `tensor` is the largest one's bytes."""
    beside = peaks["large"] - peaks["tiny"] - held
    numbers = (held, peaks["large"], peaks["tiny"], beside)
    cells = " | ".join(f"{number / 1e6:,.0f} MB" for number in numbers)
    print(f"| {name} | {cells} | {beside / tensor:.1f} |", flush=True)


def bytes_as_int8(config: LlamaConfig) -> int:
    held = jax.tree.leaves(abstract_held(config, "bfloat16", int8=True))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in held)


def convert_and_load(root: pathlib.Path, largest: int) -> None:
    bf16, f32 = (LARGE.num_parameters * width for width in (2, 4))
    int8 = bytes_as_int8(LARGE)
    conversions = {  # name: source, target, dtype, bytes on the device, those of the largest tensor
        "in, bf16": ("hub", "ours", "bfloat16", bf16, 2 * largest),
        "in, bf16 -> f32": ("hub", "wide", "float32", f32, 4 * largest),
        "out, bf16": ("ours", "back", "bfloat16", bf16, 2 * largest),
        "out, f32 -> bf16": ("wide", "narrow", "bfloat16", bf16, 2 * largest),
        "loaded as int8": ("hub", "", "", int8, 2 * largest),
        "loaded as int8, of a stage": ("ours", "", "", int8, 2 * largest),
    }
    for name, (source, target, dtype, held, tensor) in conversions.items():
        peaks = {}
        for size in ("tiny", "large"):
            place = root / size
            convert = ["-m", "qalign_jax.convert", f"--dtype={dtype}"]
            convert += [f"--source={place / source}", f"--target={place / target}"]
            peaks[size] = peak(*(convert if target else ["-c", LOAD, str(place / source)]))
        print_row(name, held, peaks, tensor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", choices=("", "llama2_7b"), help="load this model")
    only = parser.parse_args().only
    config = preset(only)[0] if only else LARGE
    largest = max(map(math.prod, hf_weights.tensor_shapes(config).values()))
    print(f"{config.num_parameters:,} parameters, the largest tensor has {largest:,}\n")
    print("| conversion | device holds | peak | tiny model's peak | beside the model | tensors |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_checkpoint(root / "tiny" / "hub", TINY)
        write_checkpoint(root / "large" / "hub", config, zeros=bool(only))
        if only:
            sizes = ("tiny", "large")
            peaks = {size: peak("-c", LOAD, str(root / size / "hub")) for size in sizes}
            print_row(f"{only}, loaded as int8", bytes_as_int8(config), peaks, 2 * largest)
        else:
            convert_and_load(root, largest)


if __name__ == "__main__":
    main()
