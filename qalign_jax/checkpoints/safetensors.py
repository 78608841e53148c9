"""Safetensors, local or gs://, one tensor at a time in both directions.

The safetensors package maps whole files or needs whole files in memory, and takes local names only;
a 70B model passes through a host that holds little more than one of its tensors. The format is
a JSON header in front of the raw values (https://github.com/huggingface/safetensors).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
from etils import epath

from qalign_jax import files

DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
_MOST_HEADER = 100_000_000  # bytes, as the safetensors package has it
_UNCOVERED = "not the file that was written: there are bytes of no tensor"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """The place of a tensor: its file, dtype, shape, and the first of its bytes there."""

    file: epath.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """The tensors of a model's directory by name, over one file or several with an index.

    Links are followed, as a directory of the Hub's cache has nothing else; names in the index are
    those of files in the directory itself.

    Opening reads the headers alone and checks them: every tensor of the index exists, and every
    file has the length that its header gives.

    Raises:
      ValueError: naming the file, and the tensor where one is at fault.
    """

    def __init__(self, directory, single: str = SINGLE, index: str = INDEX):
        self.directory = epath.Path(directory)
        if (self.directory / index).exists():
            promised = _weight_map(self.directory / index)
        elif (self.directory / single).exists():
            promised = None
        else:
            raise ValueError(_nothing_here(self.directory, single))
        names = sorted(set(promised.values())) if promised else [single]
        found = {file: read_header(self.directory / file) for file in names}
        if promised is None:
            promised = dict.fromkeys(found[single], single)
        for name, file in promised.items():
            if name not in found[file]:
                raise ValueError(
                    f"{self.directory}: the tensor {name} is not in {file}, where {index} has it"
                )
        # in the order of the files, so that each file is read from front to back
        self.entries: dict[str, Entry] = {
            name: entry
            for file in names
            for name, entry in sorted(found[file].items(), key=lambda item: item[1].start)
            if promised.get(name) == file
        }

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, in its own dtype."""
        entry = self.entries[name]
        return self._values(entry, 0, entry.bytes).reshape(entry.shape)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the weights.

        They come from every tensor's name, dtype, shape, and 128 values from its middle.
        """
        digest = hashlib.sha256()
        for name, entry in self.entries.items():
            digest.update(f"{name} {entry.dtype} {entry.shape}".encode())
            middle = entry.bytes // 2 // entry.dtype.itemsize * entry.dtype.itemsize
            count = min(128 * entry.dtype.itemsize, entry.bytes - middle)
            digest.update(self._values(entry, middle, count).tobytes())
        return digest.hexdigest()[:16]

    def _values(self, entry: Entry, skip: int, count: int) -> np.ndarray:
        with entry.file.open("rb") as file:
            file.seek(entry.start + skip)
            values = np.empty(count // entry.dtype.itemsize, entry.dtype)
            # readinto copies nothing, and every binary file has it
            if file.readinto(values.view(np.uint8)) != count:  # pyright: ignore
                raise ValueError(f"{entry.file}: it ends too early; download it again")
        return values


def read_header(path: epath.Path) -> dict[str, Entry]:
    """The tensors of one file.

    Raises:
      ValueError: no safetensors file, one that is cut off, or that has bytes of no tensor, as the
        safetensors package refuses it too; or a dtype that is not read.
    """
    try:
        length = path.stat().length
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            whole = size <= min(length - 8, _MOST_HEADER)
            header = files.parse_json(file.read(size), "", "") if whole else None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ValueError(
            f"{path}: not a whole safetensors file (a download cut off, or a Git LFS pointer?); "
            "download it again"
        )
    header.pop("__metadata__", None)
    entries = {}
    for name, found in header.items():
        kind, shape, begin, end = _entry(path, name, found)
        if kind not in DTYPES:
            raise ValueError(
                f"{path}: the tensor {name} is {kind}; {', '.join(DTYPES)} are read. A quantised "
                "checkpoint must be saved unquantised first"
            )
        entries[name] = Entry(path, DTYPES[kind], shape, 8 + size + begin)
        if end - begin != entries[name].bytes:
            raise ValueError(
                f"{path}: the tensor {name} has {end - begin} bytes, its shape makes "
                f"{entries[name].bytes}"
            )
        if 8 + size + end > length:
            raise ValueError(
                f"{path}: the file ends inside the tensor {name} ({length} bytes, and it should "
                f"reach {8 + size + end}); download it again"
            )
    if not entries:
        raise ValueError(f"{path}: it holds no tensors; download it again")
    at = 8 + size
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if entry.start < at:
            raise ValueError(f"{path}: the tensor {name} overlaps another; download it again")
        if entry.start > at:
            raise ValueError(f"{path}: {_UNCOVERED} before the tensor {name}; download it again")
        at = entry.start + entry.bytes
    if at < length:
        raise ValueError(f"{path}: {_UNCOVERED} behind the last tensor; download it again")
    return entries


def _entry(path: epath.Path, name: str, found) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, and where the values begin and end."""
    try:
        kind, (begin, end), shape = found["dtype"], found["data_offsets"], tuple(found["shape"])
        numbers = (begin, end, *shape)
        whole = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole or not isinstance(kind, str):
        raise ValueError(f"{path}: the header's entry of {name} is malformed")
    return kind, shape, begin, end


def write_files(
    directory,
    tensors: Iterable[tuple[str, np.ndarray]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    shard_bytes: int,
) -> int:
    """Writes the tensors, in their order, to files of at most `shard_bytes`; returns their bytes.

    Args:
      directory: where `model.safetensors`, or `model-00001-of-0000n.safetensors` and the index go.
      tensors: every name of `shapes` with its values, in that order; one is held at a time.
      dtype: of all of them.
    """
    directory = epath.Path(directory)
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards, room = [], 0
    for name, size in sizes.items():
        if size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    written = [
        SINGLE if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    tensors = iter(tensors)
    kind = next(kind for kind, known in DTYPES.items() if known == dtype)
    for file, names in zip(written, shards, strict=True):
        with (directory / file).open("wb") as out:
            out.write(_header({name: shapes[name] for name in names}, kind, sizes))
            for expected in names:
                name, values = next(tensors)
                if name != expected or values.shape != shapes[name] or values.dtype != dtype:
                    raise AssertionError(f"{name} {values.shape} where {expected} was to come")
                out.write(np.ascontiguousarray(values).view(np.uint8).data)
    if len(shards) > 1:
        weight_map = {
            name: file for file, names in zip(written, shards, strict=True) for name in names
        }
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return sum(sizes.values())


def write_file(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> int:
    """Writes f32 tensors to one file; returns their bytes."""
    shapes = {name: values.shape for name, values in tensors.items()}
    sizes = {name: values.size * 4 for name, values in tensors.items()}
    with path.open("wb") as out:
        out.write(_header(shapes, "F32", sizes))
        for values in tensors.values():
            out.write(np.ascontiguousarray(values, np.float32).view(np.uint8).data)
    return sum(sizes.values())


def _header(shapes, kind: str, sizes) -> bytes:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + sizes[name]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values are aligned
    return len(text).to_bytes(8, "little") + text


def _weight_map(index: epath.Path) -> dict[str, str]:
    try:
        found = files.read_json(index, "")["weight_map"]
        if found and all(files.is_name(file) for file in found.values()):
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{index}: no index of safetensors files; download it again")


def _nothing_here(directory: epath.Path, single: str) -> str:
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        return (
            f"{directory}: only pickled weights here (.bin), which are never unpickled. Save them "
            f"as safetensors first, where torch is installed: {to_safetensors_command(directory)}"
        )
    if any(directory.glob("consolidated.*")):
        return (
            f"{directory}: this is Meta's own format; take the Hugging Face release of the model, "
            "or convert it with transformers' convert_llama_weights_to_hf.py"
        )
    return f"{directory}: there is no {single} and no index of several"


def to_safetensors_command(directory) -> str:
    """The command that turns a directory of pickled weights into one that is read here.

    It unpickles tensors alone (torch's weights_only), never code.
    """
    return (
        'python -c "import transformers; transformers.AutoModelForCausalLM.from_pretrained('
        f"'{directory}', weights_only=True, dtype='auto').save_pretrained("
        f"'{str(directory).rstrip('/')}-safetensors')\" && cp {directory}/tokenizer* "
        f"{str(directory).rstrip('/')}-safetensors"
    )
