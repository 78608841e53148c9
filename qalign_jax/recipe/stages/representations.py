"""Compares where models represent the same questions in several languages."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax

from qalign_jax import mistakes
from qalign_jax.ahead.jobs import DecodingJob, Workload
from qalign_jax.analysis import plots
from qalign_jax.analysis import representations as analysis
from qalign_jax.evaluation import benchmarks
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import cast_params
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe.stages.base import Run, Stage
from qalign_jax.recipe.weights import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Representations(Stage):
    """Compares hidden states of parallel questions; writes results.json, space.png, layers.png."""

    systems: Mapping[str, str]  # name -> its weights, as a training stage's init
    preset: str = ""  # the size of weights that are "random"
    benchmark: str  # whose questions are asked
    questions: Mapping[str, Any]  # its files, languages and options (parts.benchmark)
    layers: Sequence[int] = ()  # 0 is the embeddings, -1 the last, normed; () is all
    pca_layer: int = -1  # which of the model's layers is projected to two dimensions
    batch_size: int = 16  # questions; attention takes memory with the square of their lengths
    dtype: str = "bfloat16"
    mesh: str = ""  # "" is the recipe's

    FREE: ClassVar[frozenset[str]] = Stage.FREE | {"batch_size"}

    def check(self) -> None:
        found = mistakes.out_of_range(f"{self.name}.", vars(self), {"batch_size": (1, math.inf)})
        if not self.systems:
            found.append(f"{self.name}.systems: no systems to compare")
        if self.dtype not in ("", "float32", "bfloat16"):
            found.append(f"{self.name}.dtype={self.dtype!r}; it is float32 or bfloat16")
        found += mistakes.of(f"{self.name}.benchmark: ", benchmarks.get, self.benchmark)
        mistakes.refuse(found)

    def check_inputs(self, run: Run) -> None:
        where = f"{self.name}.questions"
        found = mistakes.of(f"{where}: ", benchmarks.check_options, self.benchmark, self.questions)
        for name, source in self._weights.items():
            if run.weights.exists(source):
                weights = run.weights.resolve(source)
                found += mistakes.of(f"{self.name}.systems.{name}: ", weights.check_vocabulary)
        mistakes.refuse(found)

    def sources(self) -> list[Source]:
        tokenizer = [Source(self.tokenizer)] if self.tokenizer else []
        return [*self._weights.values(), *tokenizer]

    def prepare(self, run: Run) -> None:
        """Reads the questions; checks layers and lengths against every model."""
        questions = self._questions(run)
        for name, source in self._weights.items():
            weights = run.weights.resolve(source)
            config = weights.card().config
            try:
                analysis.chosen_layers(config, self.layers)
                analysis.chosen_layers(config, [self.pca_layer])
                weights.check_vocabulary()
                analysis.encode(questions, weights.tokenizer(), config.max_length)
            except ValueError as error:
                raise ValueError(f"{self.name}, {name}: {error}") from None

    def jobs(self, run: Run, workload: Workload) -> dict[str, DecodingJob]:
        """Decoding one token of as many rows stands for it: the weights dominate both."""
        jobs = {}
        for name, source in self._weights.items():
            card = run.weights.resolve(source).card()
            changes = {"dtype": self.dtype} if self.dtype else {}
            model = Llama(card.config, dataclasses.replace(card.execution, **changes))
            sizes = (self.batch_size, workload.prompt_tokens, 1)
            jobs[name] = DecodingJob((model,), self.mesh, *sizes)
        return jobs

    def run(self, run: Run) -> dict[str, Any]:
        questions, mesh = self._questions(run), make_mesh(self.mesh)
        count = len(questions[analysis.ENGLISH])
        stages = list(run.weights.stages)  # pictures show systems in the order of training
        order = sorted(
            self._weights.items(),
            key=lambda item: stages.index(item[1].name) if item[1].name in stages else -1,
        )
        found = {name: self._system(run, name, source, questions, mesh) for name, source in order}
        if jax.process_index() == 0:
            self._write(run, found, count)
        return {"questions": count, "languages": list(questions)}

    def _system(self, run: Run, name: str, source: Source, questions, mesh) -> dict[str, Any]:
        """The figures of one system, by layer, and its projection."""
        model = run.weights.resolve(source).load(mesh, self.dtype or None)
        params = cast_params(model.params, model.execution.dtype)
        model = dataclasses.replace(model, params=params)
        chosen = analysis.chosen_layers(model.config, self.layers)
        (projected,) = analysis.chosen_layers(model.config, [self.pca_layer])
        layers = sorted({*chosen, projected})
        encoded = analysis.encode(questions, model.tokenizer, model.config.max_length)
        states = analysis.representations(
            model, encoded, mesh=mesh, layers=layers, batch_size=self.batch_size,
            name=f"{self.name}, {name}",
        )  # fmt: skip
        if jax.process_index():
            return {}
        of_layer = {
            layer: {language: each[place] for language, each in states.items()}
            for place, layer in enumerate(layers)
        }
        return {
            "layers": {str(layer): analysis.compare(of_layer[layer]) for layer in sorted(chosen)},
            "pca": {"layer": projected, **analysis.project(of_layer[projected])},
        }

    def _write(self, run: Run, found: Mapping[str, Any], count: int) -> None:
        chance = 100 / count
        content = {"questions": count, "retrieval_by_chance": round(chance, 4), "systems": found}
        run.workdir.write_json(f"{self.name}/results.json", {"representations": content})
        folder = run.workdir / self.name
        layers = {name: each["layers"] for name, each in found.items()}
        plots.save(plots.by_layer(layers, chance), folder / "layers.png")
        projected = {name: each["pca"] for name, each in found.items()}
        plots.save(plots.representation_space(projected), folder / "space.png")

    @property
    def _weights(self) -> dict[str, Source]:
        return {name: Source(weights, self.preset) for name, weights in self.systems.items()}

    def _questions(self, run: Run) -> dict[str, list[str]]:
        """Language -> its questions, the same ones in each."""
        problems = benchmarks.load_problems(self.benchmark, self.questions, run.data_dir)
        try:
            return analysis.parallel_questions(problems)
        except ValueError as error:
            raise ValueError(f"{self.name}, {self.benchmark}: {error}") from None


STAGE = Representations
