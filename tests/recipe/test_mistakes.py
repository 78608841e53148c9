"""The mistakes of a configuration: all of them in one message, each with its key."""

import functools
import typing

import pytest
from ml_collections import ConfigDict

import qalign_jax
from qalign_jax.mistakes import Mistakes
from qalign_jax.recipe import file, parts
from qalign_jax.recipe.recipe import Recipe
from qalign_jax.recipe.stages.base import read_stages, stage_class
from tests.files import write_jsonl

KINDS = ("tokenizer", "train", "evaluate", "representations", "reasoning", "data_scale")
NO_NUMBERS = (float("nan"), float("inf"), -float("inf"), "1", True, None, [], 10**40, -(10**5000))


@pytest.fixture
def config(tmp_path, model_file):
    """A recipe with a stage of each kind and a tokenizer that is there."""
    write_jsonl(tmp_path / "data.jsonl", [{"instruction": "a", "response": "b"}])
    config = parts.recipe(
        "all", KINDS, tokenizer=str(model_file), cache_dir=str(tmp_path / "cache"), mesh="fsdp:8"
    )
    data = {"rows": parts.source("jsonl", str(tmp_path / "data.jsonl"))}
    questions = parts.benchmark(part="test", count=3)
    config.train = parts.training("random", data, preset="tiny", batch_size=8)
    config.evaluate = parts.evaluation(
        {"tuned": parts.system("train")}, {"word_problems": questions}
    )
    config.representations = parts.representations({"tuned": "train"}, "word_problems", questions)
    config.reasoning = parts.reasoning("evaluate")
    config.data_scale = parts.data_scale("evaluate", {"tuned": "train", "base": 0})
    config.vocabulary = parts.tokenizer(500, data)
    config.stages = ("vocabulary", *KINDS[1:])
    return config


def stage_name(kind):
    return "vocabulary" if kind == "tokenizer" else kind


def told(config, **options):
    """The lines of the mistakes in a recipe."""
    with pytest.raises(Mistakes) as caught:
        Recipe(config, "never", **options)
    return caught.value.lines


def test_a_recipe_without_mistakes_is_read(config, tmp_path):
    recipe = Recipe(config, tmp_path / "run")
    assert [stage.kind for stage in recipe.chosen] == list(KINDS)
    assert not (tmp_path / "run").exists()


def test_mistakes_of_every_kind_are_told_together_each_with_its_key(config, tmp_path):
    config.seed, config.mesh = -1, "fsdp:3"
    with config.train.unlocked():
        config.train.update({"lr": -1.0, "warmup": 2.0, "clip": float("nan"), "epoch": 3})
    config.second = parts.training(
        "random",
        {"rows": parts.source("jsonl", str(tmp_path / "nowhere.jsonl"), weight=-1.0),
         "more": parts.source("gsm9k")},
        preset="tiny", length=4096, rows=12,
    )  # fmt: skip
    config.third = parts.training("nowhere/model", {"rows": parts.source("jsonl", "/no")})
    config.fourth = parts.training("fifth", {"rows": parts.source("jsonl")})
    config.fifth = parts.training("fourth", {"rows": parts.source("jsonl")})
    config.evaluate.slots = -1
    config.evaluate.benchmarks.word_problems.limit = -1
    config.stages = (*config.stages, "second", "third", "fourth", "fifth", "sixth")
    lines = told(config, only=["second", "seventh"])
    starts = [
        "seed=-1; expected from 0 to 2147483647",
        "train.epoch: a stage of kind 'train' has no such key",
        "train.clip=nan; expected a number",
        "train.lr=-1.0; expected at least 0",
        "train.warmup=2.0; expected from 0 to 1",
        "evaluate.slots=-1; expected at least 0",
        "evaluate.benchmarks.word_problems.limit=-1; expected from 0 to",
        "stages: no stage 'sixth' is described in the recipe",
        "fourth.init='fifth': fourth needs fifth, which does not come before it",
        "no stage 'seventh'; the recipe's stages are vocabulary, train",
        "second.data.more: unknown data set 'gsm9k'",
        "second.data.rows: weight=-1.0; expected above 0",
        "mesh: mesh 'fsdp:3' makes 3 devices, but 8 are here",
        "second: length=4096 is more than the model's 2048",
        "third.init='nowhere/model' is neither a stage",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_a_stage_refuses_what_is_no_number(kind, config):
    name, class_ = stage_name(kind), stage_class(kind)
    hints = typing.get_type_hints(class_)
    numbers = [key for key in class_.keys() if hints[key] in (int, float)]
    for key in numbers:
        for value in NO_NUMBERS:
            values = config.to_dict()
            values[name][key] = value
            with pytest.raises(ValueError, match=rf"^{name}\.{key}=.*; expected (a|at|from)"):
                read_stages(ConfigDict(values))
        if hints[key] is int:
            values[name][key] = 1.5
            with pytest.raises(ValueError, match=rf"^{name}\.{key}=1.5; expected a whole number"):
                read_stages(ConfigDict(values))
    others = {str: 3, bool: 1, typing.Mapping[str, typing.Any]: "text"}
    for key in class_.keys():
        if hints[key] in others:
            values = config.to_dict()
            values[name][key] = others[hints[key]]
            with pytest.raises(ValueError, match=rf"{name}\.{key}=.*; expected (a text|True|keys)"):
                read_stages(ConfigDict(values))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed=-1; expected from 0 to 2147483647"),
        ("seed", 2**31, "seed=2147483648; expected a number of at most"),
        ("template", "no slot", "template: template 'no slot' is neither"),
        ("mesh", "fsdp:2,fsdp:4", "mesh: mesh 'fsdp:2,fsdp:4' names fsdp twice"),
        ("mesh", "fsdp:0", "mesh: mesh 'fsdp:0': bad size '0'"),
        ("stages", "train", "stages='train'; expected a list"),
        ("train.steps", -5, "train.steps=-5; expected at least 0"),
        ("train.save_every", -1, "train.save_every=-1; expected at least 1"),
        ("train.keep", 0, "train.keep=0; expected at least 1"),
        ("train.b1", 1.0, "train.b1=1.0; expected from 0 to 0.99"),
        ("train.b2", 2.0, "train.b2=2.0; expected from 0 to 0.99"),
        ("train.epochs", -1.0, "train.epochs=-1.0; expected from 0 to"),
        ("train.eps", -1e-8, "train.eps=-1e-08; expected at least 0"),
        ("train.weight_decay", -0.1, "train.weight_decay=-0.1; expected at least 0"),
        ("train.template", "none", "train.template: template 'none' is neither"),
        ("train.init", "", "train.init='' is neither a stage"),
        ("train.data", {}, "train.data: no data sets"),
        ("train.data.rows.weight", 1e9, "train.data.rows: weight=1000000000.0; expected above 0"),
        ("train.data.rows.languages", ("xx",), "train.data.rows: unknown language 'xx'"),
        ("train.data.rows.slice", "all", "train.data.rows: slice 'all' must look like"),
        ("vocabulary.vocab_size", -1, "vocabulary.vocab_size=-1; expected from 260"),
        ("vocabulary.data.rows.path", "/no", "vocabulary.data.rows: /no does not exist"),
        ("evaluate.systems.tuned.alpha", "1", "tuned.alpha='1'; expected a number"),
        ("evaluate.systems.tuned", 3, "evaluate.systems.tuned=3; expected the keys of a system"),
        ("evaluate.benchmarks.word_problems.limit", -1, "word_problems.limit=-1; expected from 0"),
        ("evaluate.benchmarks.word_problems.count", 0, "word_problems: count=0; expected from 1"),
        ("evaluate.benchmarks.word_problems.languages", ("xx",), "no language 'xx'"),
        ("evaluate.benchmarks.word_problems.max_new_tokens", 1.5, "expected a whole number"),
        ("evaluate.benchmarks.word_problems.protocol", "poem", "unknown protocol 'poem'"),
        ("representations.batch_size", 0, "representations.batch_size=0; expected at least 1"),
        ("representations.layers", ("1",), "expected a list of which each is a whole number"),
        ("data_scale.systems", {"tuned": -1}, "data_scale.systems.tuned=-1; expected from 0"),
        ("data_scale.systems", {"tuned": 1.5}, "expected a whole number or a text for each key"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_key(key, value, message, config):
    values = config.to_dict()
    *path, last = key.split(".")
    functools.reduce(dict.get, path, values)[last] = value
    assert message in "\n".join(told(ConfigDict(values)))


def test_the_rates_of_generated_data_are_shares(config, tmp_path):
    config.train.data.rows = parts.source("word_problems", part="responses", count=0, english=2.0)
    assert told(config) == [
        "train.data.rows: count=0; expected from 1 to 1000000000",
        "train.data.rows: english=2.0; expected from 0 to 1",
    ]


def test_wrong_overrides_are_told_together(config):
    overrides = {"seed": "x", "train.lrr": 1, "train.pack": "maybe", "train.lr": "nan"}
    with pytest.raises(Mistakes) as caught:
        file.read(config, overrides)
    assert caught.value.lines == [
        "--config.seed=x; expected a whole number",
        "--config.train.lrr=1: the recipe has no such key (see its file)",
        "--config.train.pack=maybe; expected True or False",
    ]
    assert str(caught.value).splitlines()[:2] == [
        "3 mistakes",
        "  1. --config.seed=x; expected a whole number",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: qalign_jax.run(None), "config=None; expected the file of a recipe, like configs"),
        (lambda: qalign_jax.run(3), "config=3; expected the file of a recipe, like configs"),
        (lambda: qalign_jax.run(stages="evaluation"), r"give a list of names, \['evaluation'\]"),
        (lambda: qalign_jax.load("meta-llama/Llama-2-7b-hf"),
         "hf download meta-llama/Llama-2-7b-hf --local-dir DIR"),
    ],
)  # fmt: skip
def test_a_call_with_what_it_does_not_take_says_what_it_takes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
