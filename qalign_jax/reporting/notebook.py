"""What a notebook shows of results: tables, and the tokens of a trace in colour."""

from collections.abc import Callable, Mapping
from typing import Any

from qalign_jax.decoding.trace import Trace
from qalign_jax.reporting import tables, templates


class Result(dict[str, Any]):
    """What a command prints as JSON: a dict, which a notebook shows as `html` makes it."""

    def __init__(self, values: Mapping[str, Any], html: Callable[[Mapping[str, Any]], str]):
        super().__init__(values)
        self._html = html

    def _repr_html_(self) -> str:
        return self._html(self)


def run_html(outcome: Mapping[str, Any]) -> str:
    """The accuracies of a run with their intervals and comparisons, and a link to its page.

    Of the means that were compared with the baseline, the first is shown: non-English.
    """
    systems = outcome["systems"]
    compared = tables.comparisons(systems)
    return _render(
        "run",
        tables=tables.tables(systems),
        comparisons={
            benchmark: [row for row in rows if row.mean == rows[0].mean]
            for benchmark, rows in compared.items()
        },
        stages=outcome["stages"],
        report=outcome["report"],
    )


def report_html(outcome: Mapping[str, Any]) -> str:
    """A link to a run's page."""
    return _render("page", report=outcome["report"])


def score_html(result: Mapping[str, Any]) -> str:
    """Accuracies by both readers of an answer, the published one's with intervals."""
    readers = {"published reader": result["accuracy"] | {"intervals": result["intervals"]}}
    readers["sound reader"] = result["sound"]
    systems = {name: {result["benchmark"]: row} for name, row in readers.items()}
    return _render("scores", tables=tables.tables(systems))


def fits_html(result: Mapping[str, Any]) -> str:
    """What each program of a recipe needs of a device's memory, and what fits where it does not."""
    rows = [
        (f"{name} {program}".strip(), found)
        for name, stage in result["stages"].items()
        for program, found in (stage.get("programs") or {"": stage}).items()
    ]
    return _render("fits", result=result, rows=rows)


class ShownTrace(Trace):
    """A trace, whose tokens a notebook shows shaded by how far their probability was moved.

    Hovering shows what the base alone would have said in the token's place; a token that it would
    not have said is underlined.
    """

    def _repr_html_(self) -> str:
        columns = (
            self.text, self.base_text, self.tokens, self.base_tokens, self.base_probability,
            self.probability, self.moved,
        )  # fmt: skip
        return _render("trace", tokens=list(zip(*columns, strict=True)))


def _render(macro: str, **values: Any) -> str:
    return str(getattr(templates.macros("notebook.html.jinja"), macro)(**values))
