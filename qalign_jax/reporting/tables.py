"""Systems against languages, for the terminal and for the page."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Behind the languages, in this order.
MEANS = {"non_english": "non-English", "average": "average"}


# The tables of a benchmark's result by their names in results.json; "" is the result itself.
READERS = {
    "": "published reader",
    "sound": "sound reader",
    "likelihood": "most likely choice",
    "likelihood_per_character": "most likely choice per character",
}
# Likewise, of how tokens were drafted: those of speculative decoding.
DRAFTS = {
    "acceptance": "per cent of the compared drafts that were kept",
    "tokens_per_round": "tokens a round",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """One benchmark: `columns` are headings, a row is a system's name and one value a column.

    A value is a percentage, or None where the system was not scored in that language. `intervals`
    has [low, high] or None in the same places, `marks` a mark behind the values that differ from
    the baseline's in that language, p < 0.05 after Holm's correction.
    """

    benchmark: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    intervals: tuple[tuple[list[float] | None, ...], ...]
    marks: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A system's mean beside the baseline's, in percent and percentage points."""

    system: str
    mean: str
    accuracy: float
    interval: list[float]
    baseline: str
    difference: float
    difference_interval: list[float]
    p: float


def tables(systems: Mapping[str, Mapping[str, Any]], reader: str = "") -> list[Table]:
    """One table a benchmark from results.json's `systems`; `reader` is in READERS or DRAFTS.

    Benchmarks without such a table are left out.
    """
    return [
        _table(benchmark, {system: _read(result, reader) for system, result in results.items()})
        for benchmark, results in _by_benchmark(systems).items()
        if any(_read(result, reader) for result in results.values())
    ]


def comparisons(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Comparison]]:
    """The means that were compared with a baseline, by benchmark."""
    found = {}
    for benchmark, results in _by_benchmark(systems).items():
        rows = [
            Comparison(
                system, MEANS[mean], result[mean], result["intervals"][mean],
                result["versus"]["baseline"], versus["difference"], versus["interval"],
                versus["p"],
            )
            for system, result in results.items()
            for mean in MEANS
            if (versus := result.get("versus", {}).get(mean)) and mean in result
        ]  # fmt: skip
        if rows:
            found[benchmark] = rows
    return found


def text(systems: Mapping[str, Mapping[str, Any]], reader: str = "") -> str:
    """The tables as plain text: one block a benchmark, accuracies in percent.

    Behind the published reader's come the means' intervals and comparisons, where there are some.
    """
    blocks, compared = [], {} if reader else comparisons(systems)
    for table in tables(systems, reader):
        rows = [[table.benchmark, *table.columns]]
        rows += [
            [system, *("-" if value is None else f"{value:.1f}" for value in values)]
            for system, values in table.rows
        ]
        blocks.append(_aligned(rows))
        if found := compared.get(table.benchmark):
            head = ["", "accuracy", "95 %", f"less {found[0].baseline}", "95 %", "p"]
            blocks.append(_aligned([head, *map(_compared, found)]))
    return "\n\n".join(blocks)


def _compared(row: Comparison) -> list[str]:
    low, high = row.interval
    least, most = row.difference_interval
    return [
        f"{row.system}, {row.mean}", f"{row.accuracy:.1f}", f"{low:.1f} to {high:.1f}",
        f"{row.difference:+.1f}", f"{least:+.1f} to {most:+.1f}", f"{row.p:.2g}",
    ]  # fmt: skip


def _aligned(rows: list[list[str]]) -> str:
    """Columns of text under a line, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _by_benchmark(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Benchmark -> system -> result."""
    found: dict[str, dict[str, Any]] = {}
    for system, benchmarks in systems.items():
        for benchmark, result in benchmarks.items():
            found.setdefault(benchmark, {})[system] = result
    return found


def _read(result: Mapping[str, Any], reader: str) -> Mapping[str, Any]:
    return result.get(reader, {}) if reader else result


def _table(benchmark: str, scores: Mapping[str, Mapping[str, Any]]) -> Table:
    numbers = {
        system: {key: value for key, value in result.items() if isinstance(value, (int, float))}
        for system, result in scores.items()
    }
    present = list(dict.fromkeys(key for result in numbers.values() for key in result))
    last = ("en", *MEANS, "all")
    languages = [key for key in present if key not in last]
    keys = languages + [key for key in last if key in present]
    return Table(
        benchmark,
        tuple(MEANS.get(key, key) for key in keys),
        tuple((system, tuple(row.get(key) for key in keys)) for system, row in numbers.items()),
        tuple(
            tuple(result.get("intervals", {}).get(key) for key in keys)
            for result in scores.values()
        ),
        tuple(tuple(_mark(result, key) for key in keys) for result in scores.values()),
    )


def _mark(result: Mapping[str, Any], key: str) -> str:
    versus = result.get("versus", {}).get(key, {})
    return "*" if versus.get("p_holm", versus.get("p", 1)) < 0.05 else ""
