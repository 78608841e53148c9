"""The parts that recipes are made of, with every default."""

import dataclasses

from ml_collections import ConfigDict, FieldReference

from qalign_jax.models.presets import preset
from qalign_jax.parallel.chips import parse_slice
from qalign_jax.recipe.stages.base import stage_class
from qalign_jax.recipe.stages.evaluate import SystemConfig

Value = str | FieldReference  # a key's value, or a reference to another key


def parse_arg(arg: str) -> tuple[str, str]:
    """A recipe's argument, `llama2_70b` or `llama2_70b,v5p-128`: a preset, and a slice or "".

    The slice comes back by its shape (v5p:4x4x4), whichever of its names was given.

    Raises:
      ValueError: a preset or a slice that does not exist.
    """
    model, comma, where = arg.partition(",")
    preset(model)
    return model, parse_slice(where).name if comma else ""


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


def system(model: Value, expert: Value = "", antiexpert: Value = "", **changes) -> ConfigDict:
    """One system to score: a model, or one steered by an expert against an anti-expert.

    `changes`: alpha, preset and small_preset, as in SystemConfig (recipe/stages/evaluate.py).
    """
    keys = [field.name for field in dataclasses.fields(SystemConfig)]
    values = {"model": model, "expert": expert, "antiexpert": antiexpert, **changes}
    return _config(SystemConfig, keys, values)


def benchmark(path: Value = "", **options) -> ConfigDict:
    """A benchmark: its files and languages.

    `limit` is of problems a language (0: all), `max_new_tokens` 0 the benchmark's own; other
    options go to its data set.
    """
    config = ConfigDict({"languages": (), "limit": 0, "max_new_tokens": 0})
    config.path = path
    config.update(options)
    return config


def evaluation(
    systems: dict[str, ConfigDict], benchmarks: dict[str, ConfigDict], **changes
) -> ConfigDict:
    """Scores every system on every benchmark, greedy, bf16, as the paper does."""
    return stage("evaluate", systems=systems, benchmarks=benchmarks, **changes)


def _config(class_, keys: list[str], values: dict, **first) -> ConfigDict:
    """A ConfigDict of a dataclass' defaults and these values, which may be references."""
    config = ConfigDict(first)
    for field in dataclasses.fields(class_):
        if field.name not in keys:
            continue
        if field.default is not dataclasses.MISSING:
            config[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            config[field.name] = ConfigDict(field.default_factory())
        else:
            if field.name not in values:
                raise ValueError(f"{class_.__name__} needs a value of {field.name!r}")
            given = values.pop(field.name)
            config[field.name] = ConfigDict(given) if isinstance(given, dict) else given
    config.update(values)
    return config
