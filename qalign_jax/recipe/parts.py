"""The parts that recipes are made of, with every default."""

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from qalign_jax.models.presets import preset
from qalign_jax.parallel.chips import parse_slice
from qalign_jax.recipe.stages.base import stage_class
from qalign_jax.recipe.stages.evaluate import SystemConfig

Value = str | FieldReference  # a key's value, or a reference to another key


def parse_arg(arg: str) -> tuple[str, str, list[str]]:
    """A recipe's argument, such as `llama2_70b,v5p-128`: a preset, a slice or "", other words.

    The slice comes back by its shape (v5p:4x4x4), whichever of its names was given.

    Raises:
      ValueError: a preset or a slice that does not exist.
    """
    model, *others = arg.split(",")
    preset(model)
    words = [word for word in others if word.isalpha()]
    found = [parse_slice(word).name for word in others if word not in words]
    if len(found) > 1:
        raise ValueError(f"{arg!r} names {len(found)} slices; give one at most")
    return model, "".join(found), words


def check_words(words: Sequence[str], known: Sequence[str] = ()) -> None:
    """Raises a ValueError for words in a recipe's argument that it does not know."""
    if unknown := sorted(set(words) - set(known)):
        raise ValueError(
            f"the recipe's argument has {unknown[0]!r}; behind the model stand a TPU slice and "
            f"{', '.join(known) or 'no other word'}"
        )


def recipe(name: str, stages: tuple[str, ...], **changes) -> ConfigDict:
    """A recipe's own keys; the stages are added to it."""
    config = ConfigDict()
    config.name = name
    config.stages = stages  # in order; each names a key of this config
    config.seed = 1234  # the paper's
    config.template = "paper"  # a name in data/prompts.py, or a text with {instruction}
    config.tokenizer = ""  # a path or a stage; "" takes that of the initial weights
    config.mesh = "data:1,fsdp:-1,tensor:1"  # fsdp:16x16 splits over two axes of a slice
    config.cache_dir = "~/.cache/qalign_jax"  # data sets and packed tokens, on each host
    config.notes = ()  # where the recipe departs from the paper; shown in the report
    config.update(changes)
    return config


def source(name: Value, path: Value = "", **options) -> ConfigDict:
    """A data set: what builds it, its file or folder, which part of it, how often an epoch."""
    config = ConfigDict({"languages": (), "split": "", "slice": "", "weight": 1.0})
    config.name = name
    config.path = path
    config.update(options)
    return config


def stage(kind: str, **values) -> ConfigDict:
    """A stage's part of a recipe: the defaults of its kind, and these values.

    `kind` is a module of recipe/stages, or the dotted name of another (recipe/stages/base.py).
    """
    class_ = stage_class(kind)
    return _config(class_, class_.keys(), values, kind=kind)


def tokenizer(vocab_size: int, data: dict[str, ConfigDict], **changes) -> ConfigDict:
    """A stage that trains a tokenizer."""
    return stage("tokenizer", vocab_size=vocab_size, data=data, **changes)


def training(init: Value, data: dict[str, ConfigDict], **changes) -> ConfigDict:
    """A training stage with the paper's hyper-parameters (recipe/stages/train.py)."""
    return stage("train", init=init, data=data, **changes)


def system(
    model: Value,
    expert: Value = "",
    antiexpert: Value = "",
    alpha: float | Sequence[float] | FieldReference = 1.0,
    **changes,
) -> ConfigDict:
    """One system to score: a model, or one steered by an expert against an anti-expert.

    Several values of `alpha` make a system each, of the same loaded models. `changes`: preset,
    small_preset, trace, draft, draft_preset, draft_tokens, as in SystemConfig
    (recipe/stages/evaluate.py).
    """
    keys = [field.name for field in dataclasses.fields(SystemConfig) if field.name != "alpha"]
    values = {"model": model, "expert": expert, "antiexpert": antiexpert, **changes}
    config = _config(SystemConfig, keys, values)
    config.alpha = alpha if isinstance(alpha, FieldReference) else any_alpha(alpha)
    return config


def any_alpha(value: float | Sequence[float]) -> FieldReference:
    """A key for a system's alpha, which a flag may change to a number or to several."""
    return FieldReference(value, field_type=object)


def benchmark(path: Value = "", **options) -> ConfigDict:
    """A benchmark: its files and languages.

    `limit` is of problems a language (0: all), `split` one of the benchmark's. `max_new_tokens` 0
    and `protocol` "" are its own (code: solutions whose code is run). Other options go to its
    data set.
    """
    config = ConfigDict(
        {"languages": (), "split": "", "limit": 0, "max_new_tokens": 0, "protocol": ""}
    )
    config.path = path
    config.update(options)
    return config


def evaluation(
    systems: dict[str, ConfigDict], benchmarks: dict[str, ConfigDict], **changes
) -> ConfigDict:
    """Scores every system on every benchmark, greedy, bf16, as the paper does."""
    return stage("evaluate", systems=systems, benchmarks=benchmarks, **changes)


def representations(
    systems: dict[str, Value], benchmark: str, questions: ConfigDict, **changes
) -> ConfigDict:
    """Compares hidden states of a benchmark's questions; `systems` is name -> its weights."""
    values = {"systems": systems, "benchmark": benchmark, "questions": questions, **changes}
    return stage("representations", **values)


def reasoning(evaluation: Value, **changes) -> ConfigDict:
    """Compares an evaluation's solutions with the English ones."""
    return stage("reasoning", evaluation=evaluation, **changes)


def data_scale(evaluation: Value, systems: dict[str, Value | int], **changes) -> ConfigDict:
    """Accuracy against question pairs; `systems` is name -> a number, or the training stage."""
    return stage("data_scale", evaluation=evaluation, systems=systems, **changes)


def _config(class_, keys: list[str], values: dict, **first) -> ConfigDict:
    """A ConfigDict of a dataclass' defaults and these values, which may be references."""
    config = ConfigDict(first)
    for field in dataclasses.fields(class_):
        if field.name not in keys:
            continue
        if field.default is not dataclasses.MISSING:
            config[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults = field.default_factory()
            defaults |= values.pop(field.name, {})
            # a number that is None by default can be given by a flag
            empty = {key: placeholder(int) for key, value in defaults.items() if value is None}
            config[field.name] = ConfigDict(defaults | empty)
        else:
            if field.name not in values:
                raise ValueError(f"{class_.__name__} needs a value of {field.name!r}")
            given = values.pop(field.name)
            config[field.name] = ConfigDict(given) if isinstance(given, dict) else given
    config.update(values)
    return config
