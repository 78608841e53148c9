"""The benchmarks, one a file: the data set's builder, the languages, and the `BENCHMARK`."""

import dataclasses
import importlib
import os
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from qalign_jax import mistakes
from qalign_jax.evaluation import protocols
from qalign_jax.evaluation.benchmarks.base import Benchmark

NAMES = sorted({module.name for module in pkgutil.iter_modules(__path__)} - {"base"})

# The keys that a recipe gives of every benchmark, with their types, least and most.
_TYPES: Mapping[str, Any] = {
    "path": str, "languages": Sequence[str], "split": str, "limit": int, "max_new_tokens": int,
    "protocol": str,
}  # fmt: skip
_LIMITS: Mapping[str, Any] = dict.fromkeys(
    ("limit", "max_new_tokens"), (0, mistakes.LARGEST)
)  # 0: its own
_OF_ANSWERS = ("max_new_tokens", "protocol")  # keys of a benchmark that are not its data set's


def get(name: str, protocol: str = "") -> Benchmark:
    """The benchmark of that name, judged by another protocol than its own where one is named.

    Imported by name: builders import TFDS, which takes a second.

    Raises:
      ValueError: no such benchmark or protocol, with those that there are.
    """
    if name not in NAMES:
        raise ValueError(f"unknown benchmark {name!r}; it is one of {', '.join(NAMES)}")
    benchmark = importlib.import_module(f"{__name__}.{name}").BENCHMARK
    check_protocol(protocol)
    if not protocol:
        return benchmark
    module = importlib.import_module(f"{protocols.__name__}.{protocol}")
    return dataclasses.replace(benchmark, protocol=module)


def check_protocol(protocol: str) -> None:
    """Raises a ValueError for a name, other than "", that no protocol has."""
    known = sorted(module.name for module in pkgutil.iter_modules(protocols.__path__))
    if protocol not in ("", *known):
        raise ValueError(f"unknown protocol {protocol!r}; it is one of {', '.join(known)}")


def option_mistakes(where: str, options: Any) -> list[str]:
    """The lines for a benchmark's options (parts.benchmark) that make no sense."""
    if not isinstance(options, Mapping):
        return [mistakes.expected(where, options, "the options of a benchmark")]
    known = {key: options.get(key) for key in _TYPES}
    if found := mistakes.wrong_types(f"{where}.", known, _TYPES):
        return found
    found = mistakes.out_of_range(f"{where}.", known, _LIMITS)
    return found + mistakes.of(f"{where}.protocol: ", check_protocol, known["protocol"])


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises a ValueError for languages, files and options that a benchmark does not have."""
    data = {key: value for key, value in options.items() if key not in _OF_ANSWERS}
    get(name).check(**data)


def load_problems(
    name: str, options: Mapping[str, Any], data_dir: str | os.PathLike
) -> list[dict[str, Any]]:
    """The problems of a benchmark as a recipe describes it (parts.benchmark).

    Raises:
      ValueError: as `Benchmark.load`.
    """
    data = {key: value for key, value in options.items() if key not in _OF_ANSWERS}
    return get(name).load(data_dir, **data)
