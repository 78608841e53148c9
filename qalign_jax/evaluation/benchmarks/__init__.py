"""The benchmarks, one a file: the data set's builder, the languages, and the `BENCHMARK`."""

import dataclasses
import importlib
import os
import pkgutil
from collections.abc import Mapping
from typing import Any

from qalign_jax.evaluation import protocols
from qalign_jax.evaluation.benchmarks.base import Benchmark

NAMES = sorted({module.name for module in pkgutil.iter_modules(__path__)} - {"base"})

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
    known = sorted(module.name for module in pkgutil.iter_modules(protocols.__path__))
    if protocol not in ("", *known):
        raise ValueError(f"unknown protocol {protocol!r}; it is one of {', '.join(known)}")
    if not protocol:
        return benchmark
    module = importlib.import_module(f"{protocols.__name__}.{protocol}")
    return dataclasses.replace(benchmark, protocol=module)


def load_problems(
    name: str, options: Mapping[str, Any], data_dir: str | os.PathLike
) -> list[dict[str, Any]]:
    """The problems of a benchmark as a recipe describes it (parts.benchmark).

    Raises:
      ValueError: as `Benchmark.load`.
    """
    data = {key: value for key, value in options.items() if key not in _OF_ANSWERS}
    return get(name).load(data_dir, **data)
