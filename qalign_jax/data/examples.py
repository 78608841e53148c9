"""A source named in a config -> its examples, built once as ArrayRecord and read at random."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import os
import pathlib
import pkgutil
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from qalign_jax import mistakes
from qalign_jax.data import built, datasets, prompts

MOST_COPIES = 1000  # of an example an epoch
# The keys of every source, with their types; a data set's own have those of its OPTIONS.
_DEFAULTS = {"name": "", "path": "", "languages": (), "split": "", "slice": "", "weight": 1.0}
_TYPES: Mapping[str, Any] = {
    "name": str, "path": str, "languages": Sequence[str], "split": str, "slice": str,
    "weight": float,
}  # fmt: skip
_SLICE = re.compile(r"\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\]")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checked source: `Source.parse` reads the config's mapping and raises ValueError.

    `weight` is how often an epoch sees each example (0.5: a seeded half); `slice` is applied to
    the examples in the source's own order.
    """

    name: str
    builder: Any  # a subclass of datasets.base.ExamplesBuilder
    path: str
    languages: tuple[str, ...]
    split: str
    slice: str
    weight: float
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def parse(cls, source: Mapping[str, Any], builder: type | None = None) -> "Source":
        if not isinstance(source, Mapping):
            raise ValueError(f"{source!r} is no data set; give its keys (name, path, ..)")
        given = _DEFAULTS | {key: source[key] for key in source}
        mistakes.refuse(mistakes.wrong_types("", given, _TYPES))
        name, path, split = given.pop("name"), given.pop("path"), given.pop("split")
        builder = builder or load_builder(name)
        languages, weight, chosen = (given.pop(key) for key in ("languages", "weight", "slice"))
        known = builder.OPTIONS
        found = [
            line for each in languages for line in mistakes.of("", prompts.language_name, each)
        ]
        found += mistakes.of("", parse_slice, chosen, 1)
        if not 0 < weight <= MOST_COPIES:
            found.append(
                f"weight={weight!r}; expected above 0 and at most {MOST_COPIES} (how often an "
                "epoch sees each example); leave the source out instead of giving it no weight"
            )
        if unknown := sorted(set(given) - set(known)):
            found.append(
                f"{name} has no key {', '.join(unknown)}; it has name, path, languages, split, "
                f"slice, weight{''.join(', ' + key for key in known)}"
            )
        own = {key: type(value) for key, value in known.items()}
        found += mistakes.wrong_types("", given, own)
        mistakes.refuse(found)
        options = tuple(sorted((dict(known) | given).items()))
        return cls(name, builder, path, tuple(languages), split, chosen, float(weight), options)

    def configure(self, data_dir: epath.Path):
        """The builder's config, whose name is the fingerprint of the files and options."""
        return self.builder.configure(
            self.path, self.languages, self.split, dict(self.options), data_dir
        )


def check_source(source: Mapping[str, Any], builder: type | None = None) -> None:
    """Raises a ValueError for a source that makes no sense or whose files are not there.

    Nothing is read or downloaded.
    """
    checked = Source.parse(source, builder)
    checked.builder.check_files(
        checked.path, checked.languages, checked.split, dict(checked.options)
    )


def source_mistakes(where: str, sources: Mapping[str, Any]) -> list[str]:
    """The lines for those of the sources, by name, for which `check_source` raises."""
    return [
        line
        for name, source in sources.items()
        for line in mistakes.of(f"{where}.{name}: ", check_source, source)
    ]


class Examples(Sequence):
    """Random access to a slice of a data set as dicts of str; `name` is its fingerprint."""

    def __init__(self, data: Any, chosen: slice, name: str):
        self._data, self.slice, self.name = data, chosen, name
        self._indices = range(len(data))[chosen]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, str]:
        return _decoded(self._data[self._indices[index]])

    def __iter__(self) -> Iterator[dict[str, str]]:
        for start in range(0, len(self), 1024):
            yield from self.batch(range(start, min(start + 1024, len(self))))

    def batch(self, indices: Sequence[int]) -> list[dict[str, str]]:
        """Several examples at once, which is cheaper than one by one."""
        return [
            _decoded(row) for row in self._data.__getitems__([self._indices[i] for i in indices])
        ]


def load_examples(
    source: Mapping[str, Any] | Source, data_dir: str | os.PathLike, builder: type | None = None
) -> Examples:
    """The examples of a source, built under `data_dir` the first time.

    `builder` is given where the data set is not one of data/datasets. Training sets hold id,
    instruction, response, language (no instruction: plain text); benchmarks id, language,
    question, answer.

    Raises:
      ValueError: what is wrong with the source or its files, by file and line.
    """
    if not isinstance(source, Source):
        source = Source.parse(source, builder)
    data_dir = epath.Path(data_dir)
    config = source.configure(data_dir)
    folder = _built(source, config, data_dir)
    stored: Any = _tfds().builder_from_directory(folder)
    data = stored.as_data_source(split="train")
    examples = Examples(data, parse_slice(source.slice, len(data)), config.name)
    if not examples:
        raise ValueError(
            f"slice {source.slice} of {source.name} {source.path} keeps nothing of its "
            f"{len(data)} examples; choose another slice"
        )
    return examples


def load_builder(name: str) -> type:
    """The BUILDER of data/datasets/<name>.py, or of a module of your own by its dotted name.

    Imported by name: TFDS takes a second to import, and a wrong name is an error before it.

    Raises:
      ValueError: no such data set.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(datasets.__path__))
    known.remove("base")
    path = name if "." in name else f"{datasets.__name__}.{name}"
    if name not in known and not ("." in name and importlib.util.find_spec(path)):
        raise ValueError(f"unknown data set {name!r}; name is one of {', '.join(known)}")
    return importlib.import_module(path).BUILDER


def parse_slice(text: str, count: int) -> slice:
    """`""` is everything of `count`; `"[a:b]"` means what it means in Python, per cent rounded.

    At least one example is kept of a share above nothing: "[:1%]" of 20 is the first.
    """
    match = _SLICE.fullmatch(text.strip()) if isinstance(text, str) else None
    if text == "":
        return slice(None, None)
    if not match:
        raise ValueError(f"slice {text!r} must look like [100:200], [:200], [-200:] or [:25%]")

    def bound(written: str | None) -> int | None:
        if not written or not written.endswith("%"):
            return int(written) if written else None
        share = int(written[:-1])
        if abs(share) > 100:
            raise ValueError(f"slice {text!r} has a share above 100 %")
        return round(share * count / 100) or (share > 0) - (share < 0)

    return slice(bound(match[1]), bound(match[2]))


def _built(source: Source, config, data_dir: epath.Path) -> pathlib.Path:
    """The folder of the data set, built where it is not there, or damaged (data/built.py)."""
    final = pathlib.Path(data_dir) / source.builder.name / config.name

    def write(folder: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as aside, _quiet():
            builder = source.builder(data_dir=aside, config=config, file_format="array_record")
            builder.download_and_prepare(
                download_config=_tfds().download.DownloadConfig(try_download_gcs=False)
            )
            version = pathlib.Path(builder.data_dir)
            version.rename(folder / version.name)
        logging.info("built %s from %s", final, source.path or "code")

    built.ensure(final, write)
    return final / str(source.builder.VERSION)


def _tfds():
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    return tfds


@contextlib.contextmanager
def _quiet():
    """TFDS prints to stdout, where a command's result stands, and warns of any named config."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _decoded(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value.decode() if isinstance(value, bytes) else value for key, value in row.items()
    }
