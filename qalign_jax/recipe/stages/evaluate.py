"""Scores systems on benchmarks, greedy, as the paper does."""

import collections
import contextlib
import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax

from qalign_jax import files, mistakes
from qalign_jax.ahead.jobs import DecodingJob, Workload
from qalign_jax.data.examples import load_examples, source_mistakes
from qalign_jax.decoding.combine import ProxyTuning
from qalign_jax.decoding.draft_length import AUTO, check_draft_tokens, draft_kind
from qalign_jax.decoding.plan import LOOKUP, MODEL
from qalign_jax.decoding.system import (
    Answer,
    System,
    TextGenerator,
    check_tokenizers,
    load_models,
)
from qalign_jax.evaluation import benchmarks, records, runner, statistics
from qalign_jax.evaluation.benchmarks import Benchmark
from qalign_jax.evaluation.execution import TURNS, Execution
from qalign_jax.evaluation.numbers_only import numbers_only
from qalign_jax.evaluation.protocols import code
from qalign_jax.models.llama import Llama
from qalign_jax.models.quantization import INT8, check_dtypes
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe.stages.base import Run, Stage
from qalign_jax.recipe.weights import Source, Weights

# Settings only where they are set, so that folders of before there were any stay valid.
INT8_KEYS = ("weights_dtype", "cache_dtype")
# Of a system: they change no answer, so that folders of before there were any stay valid, too.
DRAFT_KEYS = ("draft", "draft_preset", "draft_tokens")
ADAPTER_KEY = "small_adapter"  # of a system, as INT8_KEYS
NUMBERS = "numbers_only"  # the reader without words, among the systems of results.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """One system to score: a model, or one that an expert steers against an anti-expert.

    Models are named as a training stage's `init`; where one is "random", `preset` is the size of
    the model, `small_preset` that of expert and anti-expert, and `draft_preset` that of the draft.
    With several values of `alpha` it is as many systems, which share the loaded models
    (records.by_alpha names them).

    An expert that is an adapter of the anti-expert, or of the same directory, has its weights in
    memory once. Where both are random, `small_adapter` is the rank of such an adapter.

    A draft, a model or "lookup", changes no answer; with an expert and no draft the expert drafts
    (decoding/speculative.py). `draft_tokens` is "auto" or a number, 0 for plain decoding.
    """

    expert: str = ""
    antiexpert: str = ""
    model: str
    alpha: float | Sequence[float] = 1.0
    preset: str = ""
    small_preset: str = ""
    small_adapter: int = 0
    trace: bool = False  # what the model alone would have said, in the lines of answers
    draft: str = ""
    draft_preset: str = ""
    draft_tokens: str = AUTO

    def sources(self) -> list[Source]:
        """The weights of the model, or of (model, expert, anti-expert), and of a model that drafts
        for them."""
        found = [
            Source(self.model, self.preset),
            Source(self.expert, self.small_preset, self.small_adapter),
            Source(self.antiexpert, self.small_preset),
            Source(self.draft if self.draft_kind == MODEL else "", self.draft_preset),
        ]
        return [source for source in found if source.name]

    def split(self, models: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
        """Of what belongs to each of `sources`, the targets', and the draft as of `Engine`."""
        if self.draft_kind == MODEL:
            return tuple(models[:-1]), models[-1]
        return tuple(models), LOOKUP if self.draft_kind == LOOKUP else None

    @property
    def draft_kind(self) -> str:
        """What drafts, as a plan has it (decoding/plan.py).

        Raises:
          ValueError: `draft_tokens` out of range, or some where nothing drafts.
        """
        given = self.draft if self.draft in ("", LOOKUP) else MODEL
        given = "" if self.draft == self.expert else given  # it is loaded already
        tokens = check_draft_tokens(self.draft_tokens)
        return draft_kind(given, 3 if self.expert else 1, tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Answers every question with every system and judges the answers; writes results.json."""

    systems: Mapping[str, Any]  # name -> keys of SystemConfig (parts.system)
    benchmarks: Mapping[str, Any]  # name -> its files and options (parts.benchmark)
    dtype: str = "bfloat16"
    weights_dtype: str = ""  # int8: of the layers' matrices
    cache_dtype: str = ""  # int8: of keys and values
    slots: int = 64  # rows decoded at once; 0 for as many as memory holds
    baseline: str = ""  # the system that the others are compared with
    # where the code of answers runs: bubblewrap, or none, where code is not run at all
    sandbox: str = "bubblewrap"
    mesh: str = ""  # "" is the recipe's; a decode step reads every weight, so tensor pays here
    # training problems for a reader that sees no words
    numbers_only: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    FREE: ClassVar[frozenset[str]] = Stage.FREE | {"slots"}

    def check(self) -> None:
        found = mistakes.out_of_range(f"{self.name}.", vars(self), {"slots": (0, math.inf)})
        for key in ("systems", "benchmarks"):
            if not getattr(self, key):
                found.append(f"{self.name}.{key}: no {key} to evaluate")
        if self.dtype not in ("", "float32", "bfloat16"):
            found.append(f"{self.name}.dtype={self.dtype!r}; it is float32 or bfloat16")
        found += mistakes.of(f"{self.name}.", check_dtypes, self.weights_dtype, self.cache_dtype)
        if self.sandbox not in ("bubblewrap", "none"):
            found.append(f"{self.name}.sandbox={self.sandbox!r}; it is bubblewrap or none")
        for name, options in self.benchmarks.items():
            where = f"{self.name}.benchmarks.{name}"
            found += mistakes.of(f"{where}: ", benchmarks.get, name)
            found += benchmarks.option_mistakes(where, options)
        names: list[str] = []
        for name, system in self.systems.items():
            wrong = self._system_mistakes(name, system)
            found += wrong
            scored = [(name, None)] if wrong else records.by_alpha(name, system.get("alpha"))
            names += [each for each, _ in scored]
        for name in dict.fromkeys(names):
            if not files.is_name(name) or (name == NUMBERS and self.numbers_only):
                named = f"{self.name}.systems: a system cannot be named {name!r}; take another"
                found.append(named)
            if names.count(name) > 1:
                named = f"{self.name}.systems: two systems are named {name!r}"
                found.append(f"{named}; give each alpha once, and every system its own name")
        if self.baseline not in ("", *names):
            found.append(
                f"{self.name}.baseline={self.baseline!r}; it is one of the systems, "
                f"{', '.join(names)}"
            )
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
        if isinstance(alphas := system.get("alpha"), tuple | list):
            if not alphas:
                found.append(mistakes.expected(f"{where}.alpha", alphas, "one value or more"))
            if not system.get("expert"):
                found.append(f"{where}.alpha: several values need an expert and an antiexpert")
        if bool(system.get("expert")) != bool(system.get("antiexpert")):
            found.append(f"{where}: give both expert and antiexpert, or neither")
        if not found:
            config = SystemConfig(**system)
            found += mistakes.of(f"{where}.", lambda: config.draft_kind)
            for _, alpha in records.by_alpha(name, config.alpha):
                found += mistakes.of(f"{where}.", ProxyTuning, alpha)
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

    def settings(self) -> dict[str, Any]:
        unset = [key for key in INT8_KEYS if not getattr(self, key)]
        found = {key: value for key, value in super().settings().items() if key not in unset}
        found["systems"] = {
            name: {
                key: value
                for key, value in system.items()
                if key not in DRAFT_KEYS and (value or key != ADAPTER_KEY)
            }
            for name, system in found["systems"].items()
        }
        return found

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
            models, found = [], _weights(run, system)
            shared = _shares(found, self.weights_dtype)
            for place, weights in enumerate(found):
                config, execution, *_ = weights.card()
                if self.dtype:
                    execution = dataclasses.replace(execution, dtype=self.dtype)
                beside = self.weights_dtype == INT8 or (shared and place == 1)
                part = weights.part() if beside else None
                models.append(Llama(config, execution, adapter=part and part.adapter))
            sizes = (self.slots, workload.prompt_tokens, new)
            dtypes = (self.weights_dtype, self.cache_dtype)
            models, draft = system.split(models)
            drafting = (draft, check_draft_tokens(system.draft_tokens), workload.acceptance)
            jobs[name] = DecodingJob(models, self.mesh, *sizes, *dtypes, *drafting, shared)
        return jobs

    def run(self, run: Run) -> dict[str, Any]:
        folder, problems = run.workdir / self.name, self._problems(run)
        results: dict[str, dict[str, Any]] = {name: {} for name in self._scored}
        correct: dict[tuple[str, str], Any] = {}
        with contextlib.ExitStack() as stack:
            execution = stack.enter_context(Execution()) if self._executes else None
            for name, generate in self._generators(run):
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

    def _generators(self, run: Run) -> Iterator[tuple[str, "_LazyGenerator"]]:
        """The systems by turns, those that differ in alpha alone one behind the other: they share
        the loaded models, of which no others are in memory then.
        """
        alike: dict[SystemConfig, list[str]] = collections.defaultdict(list)
        for name, system in self._scored.items():
            alike[dataclasses.replace(system, alpha=1.0)].append(name)
        for system, names in alike.items():
            load = functools.cache(functools.partial(_load, self, run, system))
            for name in names:
                yield name, _LazyGenerator(self, run, self._scored[name], load)

    @property
    def _systems(self) -> dict[str, SystemConfig]:
        return {name: SystemConfig(**system) for name, system in self.systems.items()}

    @property
    def _scored(self) -> dict[str, SystemConfig]:
        """The systems as they are scored, one an alpha."""
        return {
            each: dataclasses.replace(system, alpha=alpha)
            for name, system in self._systems.items()
            for each, alpha in records.by_alpha(name, system.alpha)
        }

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


def _shares(weights: Sequence[Weights], weights_dtype: str) -> bool:
    """Whether the expert is an adapter beside the anti-expert's weights."""
    return len(weights) >= 3 and weights[1].shares_base(weights[2], weights_dtype)


def _load(stage: Evaluate, run: Run, system: SystemConfig) -> TextGenerator:
    mesh, found = make_mesh(stage.mesh), _weights(run, system)
    how = (mesh, stage.dtype or None, stage.weights_dtype)
    loads = [functools.partial(weights.load, *how) for weights in found]
    models = load_models(loads, _shares(found, stage.weights_dtype))
    models, draft = system.split(models)
    loaded = System.of(
        models, [source.name for source in system.sources()],
        weights_dtype=stage.weights_dtype, cache_dtype=stage.cache_dtype,
        draft=draft, draft_tokens=system.draft_tokens,
    )  # fmt: skip
    return TextGenerator(loaded, mesh=mesh, slots=stage.slots, trace=system.trace)


class _LazyGenerator:
    """A system's generator, which loads its models when there is a first question to answer."""

    def __init__(
        self, stage: Evaluate, run: Run, system: SystemConfig, load: Callable[[], TextGenerator]
    ):
        """`load` gives a generator of the system's models, with any alpha."""
        self._load = load
        # a draft shapes no answer
        weights = _weights(run, dataclasses.replace(system, draft="", draft_tokens=AUTO))
        self.settings: dict[str, Any] = {
            "models": [each.fingerprint() for each in weights],
            "dtype": stage.dtype,
            **{key: getattr(stage, key) for key in INT8_KEYS if getattr(stage, key)},
        }
        if len(weights) == 3:
            self.settings["alpha"] = system.alpha
        if system.trace:
            self.settings["trace"] = True

    @functools.cached_property
    def _generator(self) -> TextGenerator:
        loaded = self._load()
        return loaded.with_alpha(self.settings["alpha"]) if "alpha" in self.settings else loaded

    def __call__(self, *args, **options) -> Iterator[Answer]:
        return self._generator(*args, **options)

    def log_likelihoods(self, prompts, choices) -> Iterator[tuple[int, list[float]]]:
        return self._generator.log_likelihoods(prompts, choices)


STAGE = Evaluate
