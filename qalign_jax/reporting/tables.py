"""Systems against languages, for the terminal and for the page."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Behind the languages, in this order.
_MEANS = {"non_english": "non-English", "average": "average"}


@dataclasses.dataclass(frozen=True)
class Table:
    """One benchmark: `columns` are headings, a row is a system's name and one value a column.

    A value is a percentage, or None where the system was not scored in that language.
    """

    benchmark: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def tables(systems: Mapping[str, Mapping[str, Any]], reader: str = "paper") -> list[Table]:
    """One table a benchmark from results.json's `systems`; `reader` is `paper` or `sound`."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for system, benchmarks in systems.items():
        for benchmark, result in benchmarks.items():
            scores = result if reader == "paper" else result.get("sound", {})
            found.setdefault(benchmark, {})[system] = scores
    return [_table(benchmark, scores) for benchmark, scores in found.items()]


def text(systems: Mapping[str, Mapping[str, Any]], reader: str = "paper") -> str:
    """The tables as plain text: one block a benchmark, accuracies in percent."""
    blocks = []
    for table in tables(systems, reader):
        rows = [[table.benchmark, *table.columns]]
        rows += [
            [system, *("-" if value is None else f"{value:.1f}" for value in values)]
            for system, values in table.rows
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        lines.insert(1, "-" * len(lines[0]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _table(benchmark: str, scores: Mapping[str, Mapping[str, float]]) -> Table:
    present = list(dict.fromkeys(key for result in scores.values() for key in result))
    languages = [key for key in present if key not in _MEANS and key not in ("sound", "en")]
    keys = languages + [key for key in ("en", *_MEANS) if key in present]
    rows = [(system, tuple(result.get(key) for key in keys)) for system, result in scores.items()]
    return Table(benchmark, tuple(_MEANS.get(key, key) for key in keys), tuple(rows))
