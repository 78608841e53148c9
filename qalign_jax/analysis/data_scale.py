"""Accuracy against the number of translated questions that stage I has seen."""

from collections.abc import Mapping
from typing import Any


def curves(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], pairs: Mapping[str, int]
) -> dict[str, list[dict[str, Any]]]:
    """Benchmark -> points of system, pairs, average and non_english (percent), by growing pairs.

    Args:
      results: the `systems` of an evaluation's results.json.
      pairs: system -> how many question pairs it was trained on.

    Raises:
      ValueError: a system that was not evaluated, or not on the benchmarks of the others, or on
        English alone.
    """
    if missing := sorted(pairs.keys() - results.keys()):
        raise ValueError(f"no results of {missing[0]!r}; there are {', '.join(results) or 'none'}")
    order = sorted(pairs, key=lambda system: pairs[system])
    found = {}
    for benchmark in results[order[0]]:
        found[benchmark] = []
        for system in order:
            scores = results[system].get(benchmark, {})
            if not {"average", "non_english"} <= scores.keys():
                raise ValueError(f"{system} has no accuracy on {benchmark} in other languages")
            point = {"system": system, "pairs": pairs[system]}
            found[benchmark].append(
                point | {name: scores[name] for name in ("average", "non_english")}
            )
    return found
