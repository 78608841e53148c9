"""Scores systems on benchmarks, greedy, as the paper does."""

import collections
import contextlib
import dataclasses
import functools
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax

from qalign_jax import files, mistakes
from qalign_jax.ahead.jobs import DecodingJob, Workload
from qalign_jax.data.examples import load_examples, source_mistakes
from qalign_jax.decoding.system import Answer, System, TextGenerator, check_tokenizers
from qalign_jax.evaluation import benchmarks, records, runner, statistics
from qalign_jax.evaluation.benchmarks import Benchmark
from qalign_jax.evaluation.execution import TURNS, Execution
from qalign_jax.evaluation.numbers_only import numbers_only
from qalign_jax.evaluation.protocols import code
from qalign_jax.models.llama import Llama
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe.stages.base import Run, Stage
from qalign_jax.recipe.weights import Source, Weights

NUMBERS = "numbers_only"  # the reader without words, among the systems of results.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """One system to score: a model, or one that an expert steers against an anti-expert.

    Models are named as a training stage's `init`; where one is "random", `preset` is the size of
    the model and `small_preset` that of expert and anti-expert.
    """

    expert: str = ""
    antiexpert: str = ""
    model: str
    alpha: float = 1.0
    preset: str = ""
    small_preset: str = ""
    trace: bool = False  # what the model alone would have said, in the lines of answers

    def sources(self) -> list[Source]:
        """The weights of the model, or of (model, expert, anti-expert)."""
        small = (Source(name, self.small_preset) for name in (self.expert, self.antiexpert))
        return [Source(self.model, self.preset), *(source for source in small if source.name)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Answers every question with every system and judges the answers; writes results.json."""

    systems: Mapping[str, Any]  # name -> keys of SystemConfig (parts.system)
    benchmarks: Mapping[str, Any]  # name -> its files and options (parts.benchmark)
    dtype: str = "bfloat16"
    slots: int = 64  # rows decoded at once
    baseline: str = ""  # the system that the others are compared with
    # where the code of answers runs: bubblewrap, or none, where code is not run at all
    sandbox: str = "bubblewrap"
    mesh: str = ""  # "" is the recipe's; a decode step reads every weight, so tensor pays here
    # training problems for a reader that sees no words
    numbers_only: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    FREE: ClassVar[frozenset[str]] = Stage.FREE | {"slots"}

    def check(self) -> None:
        found = mistakes.out_of_range(f"{self.name}.", vars(self), {"slots": (1, math.inf)})
        for key in ("systems", "benchmarks"):
            if not getattr(self, key):
                found.append(f"{self.name}.{key}: no {key} to evaluate")
        if self.dtype not in ("", "float32", "bfloat16"):
            found.append(f"{self.name}.dtype={self.dtype!r}; it is float32 or bfloat16")
        if self.sandbox not in ("bubblewrap", "none"):
            found.append(f"{self.name}.sandbox={self.sandbox!r}; it is bubblewrap or none")
        if self.baseline not in ("", *self.systems):
            found.append(
                f"{self.name}.baseline={self.baseline!r}; it is one of the systems, "
                f"{', '.join(self.systems)}"
            )
        for name, options in self.benchmarks.items():
            where = f"{self.name}.benchmarks.{name}"
            found += mistakes.of(f"{where}: ", benchmarks.get, name)
            found += benchmarks.option_mistakes(where, options)
        for name, system in self.systems.items():
            found += self._system_mistakes(name, system)
        mistakes.refuse(found)

    def _system_mistakes(self, name: str, system: Any) -> list[str]:
        where = f"{self.name}.systems.{name}"
        if not isinstance(system, Mapping):
            return [mistakes.expected(where, system, "the keys of a system")]
        hints = typing.get_type_hints(SystemConfig)
        found = [f"{where}.{key}: no system has such a key" for key in system if key not in hints]
        found += mistakes.wrong_types(f"{where}.", system, hints)
        if "model" not in system:
            found.append(f"{where}.model: the system needs this key")
        if not files.is_name(name) or (name == NUMBERS and self.numbers_only):
            found.append(f"{self.name}.systems: a system cannot be named {name!r}; take another")
        if bool(system.get("expert")) != bool(system.get("antiexpert")):
            found.append(f"{where}: give both expert and antiexpert, or neither")
        return found

    def check_inputs(self, run: Run) -> None:
        found = []
        for name, options in self.benchmarks.items():
            where = f"{self.name}.benchmarks.{name}: "
            found += mistakes.of(where, benchmarks.check_options, name, options)
        if self.numbers_only:
            found += source_mistakes(self.name, {"numbers_only": self.numbers_only})
        for name, system in self._systems.items():
            if all(run.weights.exists(source) for source in system.sources()):
                where = f"{self.name}.systems.{name}: "
                found += mistakes.of(where, _check_tokenizers, run, system)
        mistakes.refuse(found)

    def sources(self) -> list[Source]:
        tokenizer = [Source(self.tokenizer)] if self.tokenizer else []
        weights = [source for system in self._systems.values() for source in system.sources()]
        return weights + tokenizer

    def prepare(self, run: Run) -> None:
        """Tries the sandbox; reads and checks the problems; compares each system's tokenizers."""
        if self._executes and jax.process_index() == 0:
            Execution(workers=1).close()  # raises where it does not run
        found = []
        for name, system in self._systems.items():
            where = f"{self.name}.systems.{name}: "
            found += mistakes.of(where, _check_tokenizers, run, system)
        for name, problems in self._problems(run).items():
            where = f"{self.name}.benchmarks.{name}: "
            found += mistakes.of(where, runner.check_problems, self._benchmark(name), problems)
        mistakes.refuse(found)
        if self.numbers_only:
            load_examples(self.numbers_only, run.data_dir)

    def jobs(self, run: Run, workload: Workload) -> dict[str, DecodingJob]:
        new = 0
        for name, options in self.benchmarks.items():
            benchmark = self._benchmark(name)
            limit = options["max_new_tokens"] or benchmark.max_new_tokens
            executed = self._executes and benchmark.protocol is code
            new = max(new, TURNS.room(limit) if executed else limit)
        jobs = {}
        for name, system in self._systems.items():
            cards = [weights.card() for weights in _weights(run, system)]
            models = []
            for config, execution, _ in cards:
                if self.dtype:
                    execution = dataclasses.replace(execution, dtype=self.dtype)
                models.append(Llama(config, execution))
            sizes = (self.slots, workload.prompt_tokens, new)
            jobs[name] = DecodingJob(tuple(models), self.mesh, *sizes)
        return jobs

    def run(self, run: Run) -> dict[str, Any]:
        folder, problems = run.workdir / self.name, self._problems(run)
        results: dict[str, dict[str, Any]] = collections.defaultdict(dict)
        correct: dict[tuple[str, str], Any] = {}
        with contextlib.ExitStack() as stack:
            execution = stack.enter_context(Execution()) if self._executes else None
            for name, system in self._systems.items():
                generate = _LazyGenerator(self, run, system)
                for benchmark, asked in problems.items():
                    judged = self._benchmark(benchmark)
                    scores = runner.evaluate(
                        name, judged, asked, generate, self.template, folder, generate.settings,
                        self.benchmarks[benchmark]["max_new_tokens"],
                        execution if judged.protocol is code else None,
                    )  # fmt: skip
                    results[name][benchmark] = scores.result
                    correct[name, benchmark] = scores.correct
        if jax.process_index() == 0:
            self._compare(results, correct)
        if self.numbers_only:
            seen = load_examples(self.numbers_only, run.data_dir)
            results[NUMBERS] = {
                benchmark: statistics.accuracies(
                    numbers_only(seen, asked), self._benchmark(benchmark).averaged
                )
                for benchmark, asked in problems.items()
            }
        if jax.process_index() == 0:
            records.save_results(folder / "results.json", results)
        return {"systems": list(results)}

    def _benchmark(self, name: str) -> Benchmark:
        return benchmarks.get(name, self.benchmarks[name]["protocol"])

    @property
    def _executes(self) -> bool:
        protocols = [self._benchmark(name).protocol for name in self.benchmarks]
        return self.sandbox != "none" and code in protocols

    def _compare(self, results: Mapping[str, Any], correct: Mapping[Any, Any]) -> None:
        """Adds `versus`, the comparison with the baseline, to every other system's results."""
        for (name, benchmark), answers in correct.items():
            if self.baseline and name != self.baseline:
                averaged = self._benchmark(benchmark).averaged
                found = statistics.compare(answers, correct[self.baseline, benchmark], averaged)
                results[name][benchmark]["versus"] = {"baseline": self.baseline, **found}

    @property
    def _systems(self) -> dict[str, SystemConfig]:
        return {name: SystemConfig(**system) for name, system in self.systems.items()}

    def _problems(self, run: Run) -> dict[str, list[dict[str, Any]]]:
        return {
            name: benchmarks.load_problems(name, options, run.data_dir)
            for name, options in self.benchmarks.items()
        }


def _weights(run: Run, system: SystemConfig) -> list[Weights]:
    return [run.weights.resolve(source) for source in system.sources()]


def _check_tokenizers(run: Run, system: SystemConfig) -> None:
    names = [source.name for source in system.sources()]
    check_tokenizers(names, [each.tokenizer() for each in _weights(run, system)])


class _LazyGenerator:
    """A system's generator, which loads its models when there is a first question to answer."""

    def __init__(self, stage: Evaluate, run: Run, system: SystemConfig):
        self._stage, self._system = stage, system
        self._weights = _weights(run, system)
        self.settings: dict[str, Any] = {
            "models": [weights.fingerprint() for weights in self._weights],
            "dtype": stage.dtype,
        }
        if len(self._weights) == 3:
            self.settings["alpha"] = system.alpha
        if system.trace:
            self.settings["trace"] = True

    @functools.cached_property
    def _generator(self) -> TextGenerator:
        mesh = make_mesh(self._stage.mesh)
        models = [weights.load(mesh, self._stage.dtype or None) for weights in self._weights]
        names = [source.name for source in self._system.sources()]
        system = System.of(models, names, self._system.alpha)
        slots, trace = self._stage.slots, self._system.trace
        return TextGenerator(system, mesh=mesh, slots=slots, trace=trace)

    def __call__(self, *args, **options) -> Iterator[Answer]:
        return self._generator(*args, **options)

    def log_likelihoods(self, prompts, choices) -> Iterator[tuple[int, list[float]]]:
        return self._generator.log_likelihoods(prompts, choices)


STAGE = Evaluate
