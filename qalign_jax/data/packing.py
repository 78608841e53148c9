"""Examples -> tokenised, masked rows of one length, cached under a fingerprint of all settings.

An example is BOS prompt response EOS, cut to `length` tokens; token i is trained to predict token
i + 1, so n tokens fill n - 1 positions. Several examples share a row: `segment_ids` keeps their
attention apart and `positions` starts again at 0 in each.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from absl import logging
from numpy.typing import DTypeLike

from qalign_jax.data import built, prompts
from qalign_jax.data.examples import Source, load_examples
from qalign_jax.data.tokenizer import Tokenizer
from qalign_jax.progress import Progress

FORMAT = 1  # to be raised when the same input gives other rows
ARRAYS = {
    "tokens": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "loss_weights": np.uint8,
}
_SAMPLE = 20_000  # examples on which the packing's one parameter is chosen
_BATCH = 4096  # examples tokenised together


@dataclasses.dataclass(frozen=True)
class PackedData:
    """Rows on disk, memory-mapped; every array is [R, T] (ARRAYS gives the dtypes).

    `segment_ids` is 0 on padding and 1, 2, .. on the row's examples; `loss_weights` is 1 where
    the target is a response token or EOS. `stats` counts examples, dropped (nothing to train
    left), truncated, rows, positions (= R * T), trained_tokens, padded_positions (what one example
    a row would cost), efficiency (share of positions that are not padding), examples_per_row.
    """

    directory: pathlib.Path
    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    loss_weights: np.ndarray
    stats: Mapping[str, Any]
    fingerprint: str

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def row_examples(self, row: int) -> list[str]:
        """The ids ("source/id") of the examples in a row, in the order of their segments.

        Where the files with the ids are damaged the row's number stands for them: ids are asked
        for when training has failed, which must be said.
        """
        try:
            starts = np.load(self.directory / "row_starts.npy", mmap_mode="r")
            with open(self.directory / "ids.txt", encoding="utf-8") as file:
                ids = file.read().split("\n")
            placed = np.load(self.directory / "row_examples.npy", mmap_mode="r")
            return [json.loads(ids[index]) for index in placed[starts[row] : starts[row + 1]]]
        except (OSError, ValueError, IndexError) as error:
            logging.warning("%s: the ids of row %d cannot be read (%s)", self.directory, row, error)
            return [f"row {row}, whose ids cannot be read"]


def build(
    sources: Mapping[str, Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: str,
    length: int,
    cache_dir: str | os.PathLike,
    seed: int,
    pack: bool = True,
) -> PackedData:
    """Tokenises, masks and packs the sources' examples, or opens the cache that holds the result.

    A cache whose files are not those that were written is built again (data/built.py).

    Args:
      sources: name -> source (see data/examples.py); data sets are built in `cache_dir` too.
      template: a name in prompts.TEMPLATES or a text with `{instruction}`.
      length: positions a row, and the tokens at which an example is cut.
      cache_dir: a local folder; several processes may share it.
      seed: of the order before packing and of fractional weights.
      pack: False puts each example in a row of its own.

    Raises:
      ValueError: bad input, by file and line; or nothing left to train.
      StorageFailed: there is no space for the cache.
    """
    if not sources:
        raise ValueError("no data sources were given; name at least one in the stage's data")
    if length < 2:
        raise ValueError(f"length={length} must be at least 2: one token in and one to predict")
    if "://" in str(cache_dir):
        raise ValueError(f"cache_dir={cache_dir} must be a local folder: its files are mapped")
    template = prompts.template_text(template)
    parsed = {name: Source.parse(source) for name, source in sources.items()}
    cache_dir = pathlib.Path(cache_dir)
    examples = {
        name: load_examples(source, cache_dir / "datasets") for name, source in parsed.items()
    }
    settings = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "template": template,
        "length": length,
        "pack": pack,
        "seed": seed,
        "sources": [
            [name, source.name, examples[name].name, str(examples[name].slice), source.weight]
            for name, source in parsed.items()
        ],
    }
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    final = cache_dir / "packed" / fingerprint

    def write(folder: pathlib.Path) -> None:
        _write(folder, parsed, examples, tokenizer, template, length, seed, pack)
        (folder / "made_from.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")

    built.ensure(final, write)
    return _open(final, fingerprint)


def _open(directory: pathlib.Path, fingerprint: str) -> PackedData:
    arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    stats = json.loads((directory / "stats.json").read_text(encoding="utf-8"))
    return PackedData(directory, **arrays, stats=stats, fingerprint=fingerprint)


def _write(directory, parsed, examples, tokenizer, template, length, seed, pack):
    tokenised = _Tokenised(parsed, examples, tokenizer, template, length)
    random = np.random.default_rng(seed)
    order = np.concatenate(
        [
            _copies(tokenised.of_source[name], source.weight, random)
            for name, source in parsed.items()
        ]
    )
    random.shuffle(order)  # rows mix sources and languages
    sizes = tokenised.sizes - 1
    if pack:
        rows = packed_rows(order, sizes, length)
    else:
        rows = [[index] for index in order]
    trained, shape = 0, (len(rows), length)
    with contextlib.ExitStack() as opened:
        files = {
            name: opened.enter_context(_new_array(directory / f"{name}.npy", dtype, shape))
            for name, dtype in ARRAYS.items()
        }
        for indices in rows:
            arrays = {name: np.zeros(length, dtype) for name, dtype in ARRAYS.items()}
            end = 0
            for segment, index in enumerate(indices, 1):
                tokens, prompt = tokenised.tokens(index), tokenised.prompts[index]
                start, end = end, end + len(tokens) - 1
                arrays["tokens"][start:end] = tokens[:-1]
                arrays["targets"][start:end] = tokens[1:]
                arrays["segment_ids"][start:end] = segment
                arrays["positions"][start:end] = np.arange(end - start)
                arrays["loss_weights"][start + prompt - 1 : end] = 1
                trained += end - start - (prompt - 1)
            for name, row in arrays.items():
                files[name].write(row.tobytes())
    placed = {"row_examples": np.concatenate(rows), "row_starts": np.cumsum([0, *map(len, rows)])}
    for name, array in placed.items():
        with _new_array(directory / f"{name}.npy", np.int64, array.shape) as file:
            file.write(array.astype(np.int64).tobytes())
    ids = "\n".join(json.dumps(text, ensure_ascii=False) for text in tokenised.ids)
    (directory / "ids.txt").write_text(ids, encoding="utf-8", newline="\n")
    stats = {
        "examples": len(order),
        "dropped": tokenised.dropped,
        "truncated": int(tokenised.truncated),
        "rows": len(rows),
        "positions": len(rows) * length,
        "trained_tokens": int(trained),
        "padded_positions": len(order) * length,
        "efficiency": round(float(sizes[order].sum()) / (len(rows) * length), 4),
        "examples_per_row": len(order) / len(rows),
    }
    (directory / "stats.json").write_text(json.dumps(stats, indent=2), encoding="utf-8")
    logging.info(
        "packed %d examples into %d rows of %d: %.1f %% of the positions used, padding would use "
        "%.1f %%; %d examples cut, %d dropped",
        *(stats["examples"], stats["rows"], length, 100 * stats["efficiency"]),
        *(100 * sizes[order].sum() / stats["padded_positions"], stats["truncated"]),
        stats["dropped"],
    )


def _new_array(path: pathlib.Path, dtype: DTypeLike, shape: tuple[int, ...]) -> BinaryIO:
    """Opens a .npy file behind the header of an array, to write its elements in their order.

    Where the disk is full, a write to a memory map would end the process with SIGBUS, and np.save
    raises an error that does not say so.
    """
    file = path.open("wb", buffering=1 << 20)
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file


class _Tokenised:
    """Every source's examples as tokens, end to end in one array, without those dropped.

    sizes, prompts: tokens of each example and of its prompt, BOS included in both.
    """

    def __init__(self, parsed, examples, tokenizer: Tokenizer, template: str, length: int):
        self.ids: list[str] = []
        self.dropped = self.truncated = 0
        self.of_source: dict[str, np.ndarray] = {}
        flat, sizes, prompt_sizes = [], [], []
        progress = Progress("tokenise", sum(map(len, examples.values())), unit="example")
        for name in parsed:
            first = len(self.ids)
            for batch in _batches(examples[name]):
                for example, tokens, prompt in _encoded(batch, tokenizer, template):
                    if prompt >= min(len(tokens), length):
                        self.dropped += 1
                        continue
                    self.truncated += len(tokens) > length
                    tokens = tokens[:length]
                    self.ids.append(f"{name}/{example['id']}")
                    flat.append(np.asarray(tokens, np.int32))
                    sizes.append(len(tokens))
                    prompt_sizes.append(prompt)
                progress.add(count=len(batch))
            self.of_source[name] = np.arange(first, len(self.ids))
            if first == len(self.ids):
                raise ValueError(
                    f"every example of {name} has a prompt of {length} tokens or more, so nothing "
                    f"is left to train; raise length={length} or shorten the template"
                )
        progress.close()
        if self.dropped:
            logging.warning(
                "dropped %d examples whose prompt alone fills length=%d", self.dropped, length
            )
        self.sizes, self.prompts = np.array(sizes), np.array(prompt_sizes)
        self._ends = np.cumsum(self.sizes)
        self._flat = np.concatenate(flat)

    def tokens(self, index: int) -> np.ndarray:
        return self._flat[self._ends[index] - self.sizes[index] : self._ends[index]]


def _encoded(batch, tokenizer, template) -> Iterator[tuple[dict, list[int], int]]:
    """Yields (example, tokens with BOS and EOS, tokens of the prompt with BOS).

    Plain text has no prompt but BOS.
    """
    heads = [prompts.render(template, e["instruction"]) if e["instruction"] else "" for e in batch]
    pairs = tokenizer.encode_pairs(heads, [example["response"] for example in batch])
    for example, (together, prompt) in zip(batch, pairs, strict=True):
        yield example, [*together, tokenizer.eos_id], prompt


def _batches(examples) -> Iterator[list[dict[str, str]]]:
    for start in range(0, len(examples), _BATCH):
        yield examples.batch(range(start, min(start + _BATCH, len(examples))))


def _copies(indices: np.ndarray, weight: float, random: np.random.Generator) -> np.ndarray:
    """Each index int(weight) times, and a random part of them once more for the fraction."""
    whole = int(weight)
    part = round((weight - whole) * len(indices))
    if whole == 0 and part == 0:
        raise ValueError(
            f"weight={weight} leaves none of {len(indices)} examples; raise it or drop the source"
        )
    extra = random.permutation(indices)[:part]
    return np.concatenate([np.tile(indices, whole), extra])


def packed_rows(order: np.ndarray, sizes: np.ndarray, length: int) -> list[list[int]]:
    """Rows of example indices with few positions left over.

    On the real question pairs at 512 tokens, best fit fills 93 % of the positions in random order
    and 96 % with the longest first; these rows fill 98 %.
    """
    gaps, sample = range(0, length // 4 + 1, 1 + length // 64), order[:_SAMPLE]
    best = min(gaps, key=lambda gap: len(_filled_rows(sample, sizes, length, gap)))
    return _filled_rows(order, sizes, length, best)


def _filled_rows(order: np.ndarray, sizes: np.ndarray, length: int, gap: int) -> list[list[int]]:
    """Fills the rows one by one.

    Each row starts with the longest example left. Then comes the longest that fits; or, where
    that would leave more than `gap` positions, the first of the two that fill best. A wide gap
    keeps short examples for rows whose rest nothing else fills. Which examples
    of a size share a row is decided by `order` alone.
    """
    waiting: list[list[int]] = [[] for _ in range(length + 1)]  # by size
    for index in reversed(order):
        waiting[sizes[index]].append(index)
    every_size = np.arange(length + 1)
    available = np.array([bool(group) for group in waiting])
    longest = np.maximum.accumulate(np.where(available, every_size, 0))  # that fits into a room
    rows = []
    while longest[length]:
        row, room, size = [], length, int(longest[length])
        while size:
            row.append(waiting[size].pop())
            if not waiting[size]:
                available[size] = False
                longest[size:][longest[size:] == size] = longest[size - 1]
            room -= size
            size = int(longest[room])
            if size and room - size > gap:
                first, second = available[: room + 1], longest[room::-1]
                both = np.where(first, every_size[: room + 1] + second, 0)
                size = room - int(np.argmax(both[::-1]))
        rows.append(row)
    return rows
