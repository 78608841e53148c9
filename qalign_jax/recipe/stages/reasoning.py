"""Compares the steps of an evaluation's answers with those of its English answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging

from qalign_jax.analysis import plots, reasoning
from qalign_jax.evaluation.records import read_results
from qalign_jax.recipe.stages.base import Run, Stage
from qalign_jax.recipe.weights import Source

_REMEDY = "name an evaluation that has run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reasoning(Stage):
    """Agreement of reasoning with English; writes results.json and a picture a benchmark."""

    evaluation: str  # the stage whose answers are compared, or an evaluation's folder
    systems: Sequence[str] = ()  # of that evaluation; () is all that answered in words

    def sources(self) -> list[Source]:
        return [Source(self.evaluation)]

    def run(self, run: Run) -> dict[str, Any]:
        if jax.process_index():
            return {}
        folder = run.weights.path(self.evaluation)
        try:
            results = read_results(folder / "results.json", _REMEDY)["systems"]
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        answered = [name for name in results if (folder / name).is_dir()]
        found: dict[str, dict[str, Any]] = {}
        for system in self.systems or answered:
            if system not in answered:
                raise ValueError(
                    f"{self.name}: {folder} has no answers of {system!r}; its systems are "
                    f"{', '.join(answered)}"
                )
            for benchmark in results[system]:
                answers = reasoning.read_answers(folder / system / benchmark)
                try:
                    compared = reasoning.compare(answers)
                    found.setdefault(benchmark, {})[system] = compared
                except ValueError as error:
                    logging.warning("%s, %s, %s: left out, %s", self.name, system, benchmark, error)
        run.workdir.write_json(f"{self.name}/results.json", {"reasoning": found})
        for benchmark, each in found.items():
            picture = run.workdir / self.name / f"{benchmark}.png"
            plots.save(plots.agreement(each, benchmark), picture)
        return {"systems": list(self.systems or answered)}


STAGE = Reasoning
