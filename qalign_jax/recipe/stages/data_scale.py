"""Puts an evaluation's accuracies against the question pairs that its systems have seen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from qalign_jax import files, mistakes, schema
from qalign_jax.analysis import data_scale, plots
from qalign_jax.evaluation.records import read_results
from qalign_jax.recipe.stages.base import Run, Stage
from qalign_jax.recipe.weights import Source

_REMEDY = "name an evaluation that has run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataScale(Stage):
    """Accuracy against data scale; writes results.json and curve.png."""

    evaluation: str  # the stage that scored the systems, or an evaluation's folder
    # system -> its pairs: a number, 0 for one without stage I, or the training stage of which all
    # examples are pairs
    systems: Mapping[str, int | str]

    def check(self) -> None:
        counts = {key: pairs for key, pairs in self.systems.items() if isinstance(pairs, int)}
        limits = dict.fromkeys(counts, (0, mistakes.LARGEST))
        found = mistakes.out_of_range(f"{self.name}.systems.", counts, limits)
        if not self.systems:
            found.append(f"{self.name}.systems: no systems to compare")
        elif not any(self.systems.values()):
            found.append(f"{self.name}.systems: none of the systems was trained on pairs")
        mistakes.refuse(found)

    def sources(self) -> list[Source]:
        stages = [pairs for pairs in self.systems.values() if isinstance(pairs, str)]
        return [Source(name) for name in (self.evaluation, *stages)]

    def run(self, run: Run) -> dict[str, Any]:
        if jax.process_index():
            return {}
        folder = run.weights.path(self.evaluation)
        pairs = {
            system: self._count(run, given) if isinstance(given, str) else given
            for system, given in self.systems.items()
        }
        try:
            results = read_results(folder / "results.json", _REMEDY)["systems"]
            curves = data_scale.curves(results, pairs)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        run.workdir.write_json(f"{self.name}/results.json", {"data_scale": curves})
        plots.save(plots.data_scale(curves), run.workdir / self.name / "curve.png")
        return {"pairs": pairs}

    def _count(self, run: Run, stage: str) -> int:
        file = run.weights.path(stage) / "packing.json"
        if not file.exists():
            raise ValueError(f"{self.name}: {file} is missing; {stage} has trained on no examples")
        remedy = f"train {stage} again"
        packing = files.read_object(file, remedy)
        schema.check(packing, {"examples": schema.whole()}, str(file), remedy)
        return packing["examples"]


STAGE = DataScale
