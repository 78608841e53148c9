"""Stages that train a part of a model: further, merged, resumed, moved, and refused."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from qalign_jax.checkpoints.card import read_card
from qalign_jax.checkpoints.model import (
    Model,
    load_model,
    load_trained,
    save_model,
)
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.convert import convert
from qalign_jax.models.params import init_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe import parts
from qalign_jax.recipe.recipe import Recipe
from tests.files import write_jsonl

ADAPTER = {"rank": 4, "alpha": 8.0}
STAGES = {
    "first": {"adapter": {**ADAPTER, "dropout": 0.1}},
    "further": {"init": "first", "adapter": ADAPTER},
    "merged": {"init": "first", "adapter": {"rank": 2, "merge": True}, "lr": 0.0},
    "whole": {"init": "merged", "lr": 0.0},
    "int8": {"adapter": ADAPTER, "weights_dtype": "int8"},
    "layers": {"trainable": "layers:1/mlp"},
}
MESH = "fsdp:2,tensor:2,data:2"


def recipe(work, stages=STAGES):
    config = parts.recipe(
        "parts", tuple(stages), seed=3, template="short", mesh=MESH, cache_dir=str(work / "cache")
    )
    data = {"own": parts.source("jsonl", str(work / "own.jsonl"))}
    for name, changes in stages.items():
        values = {"init": str(work / "base"), "lr": 1e-2} | changes
        config[name] = parts.training(
            data=data, length=64, rows=8, steps=4, save_every=2, keep=2, warmup=0.0, **values
        )
    return config


def save_base(folder, tokenizer, seed):
    config, execution = preset("tiny", vocab_size=420)
    params = init_params(config, jax.random.key(seed))
    save_model(folder, Model(config, execution, params, tokenizer, "short"))
    write_record(folder, Record({}, {"seed": seed}))


@pytest.fixture(scope="module")
def work(tmp_path_factory, tokenizer):
    """A folder with a base, data, and a finished run of all stages."""
    work = tmp_path_factory.mktemp("parts")
    save_base(work / "base", tokenizer, 0)
    rows = [{"instruction": f"{i} + 1?", "response": f"The answer is {i + 1}."} for i in range(99)]
    write_jsonl(work / "own.jsonl", rows)
    outcome = Recipe(recipe(work), work / "run").run()
    assert set(outcome["stages"].values()) == {"done"}
    return work


def trained(folder):
    return load_trained(folder, read_card(folder), make_mesh("", jax.devices()[:1]))


def params(name):
    return load_model(name, param_dtype="float32").params


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def differs(found, expected):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return [bool(np.any(a != b)) for a, b in leaves]


@pytest.mark.slow
def test_a_stage_leaves_its_adapter_and_the_base_as_it_was(work):
    pairs, base, whole = (
        trained(work / "run/first"),
        params(work / "base"),
        params(work / "run/first"),
    )
    a, b = (pairs["layers"]["mlp"]["down"][end] for end in "ab")
    expected = base["layers"]["mlp"]["down"] + 2.0 * np.einsum("lir,lro->lio", a, b)
    np.testing.assert_allclose(whole["layers"]["mlp"]["down"], expected, rtol=0, atol=1e-6)
    assert_equal(whole["embed"], base["embed"])
    assert_equal(whole["layers"]["mlp_norm"], base["layers"]["mlp_norm"])
    assert np.abs(b).max() > 1e-3


@pytest.mark.slow
def test_a_stage_goes_on_from_an_adapter_or_beside_what_it_was_merged_into(work):
    run = work / "run"
    assert json.loads((run / "further/model.json").read_text())["part"]["base"] == str(
        work / "base"
    )
    assert json.loads((run / "merged/model.json").read_text())["part"]["base"] == "../first"
    first, further = trained(run / "first"), trained(run / "further")
    far = np.abs(first["layers"]["mlp"]["up"]["a"] - further["layers"]["mlp"]["up"]["a"]).max()
    assert 1e-3 < far < 0.1  # four steps of 1e-2 at most, from where the first ended
    # a new adapter that did not learn changes nothing; nor does a whole training from there
    assert_equal(params(run / "merged"), params(run / "first"))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6),  # merged on another mesh
        params(run / "whole"), params(run / "first"),
    )  # fmt: skip


@pytest.mark.slow
def test_only_the_chosen_layers_differ_from_the_base(work):
    found, base = params(work / "run/layers"), params(work / "base")
    for name in ("gate", "up", "down"):
        changed = [
            bool(np.any(a != b))
            for a, b in zip(found["layers"]["mlp"][name], base["layers"]["mlp"][name], strict=True)
        ]
        assert changed == [False, True]
        found["layers"]["mlp"][name] = base["layers"]["mlp"][name]
    assert not any(differs(found, base))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "int8", "layers"])
def test_a_stage_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(name, work, tmp_path):
    shutil.copytree(work / "run", tmp_path / "run")
    stage = tmp_path / "run" / name
    shutil.rmtree(stage / "checkpoints" / "4")
    (stage / "done.json").unlink()
    assert Recipe(recipe(work), tmp_path / "run", [name]).run()["stages"][name] == "done"
    assert_equal(trained(stage), trained(work / "run" / name))
    steps = [
        json.loads(line)["step"] for line in (stage / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_base_that_is_another_model_is_refused(work, tmp_path, tokenizer):
    name = work / "run" / "further"
    moved = tmp_path / "moved"
    shutil.copytree(work / "run", moved)  # the bases in a workdir move with it
    assert_equal(params(moved / "merged"), params(work / "run" / "merged"))
    save_base(tmp_path / "other", tokenizer, 1)
    with pytest.raises(
        ValueError, match=r"was trained on a base with the fingerprint \w+; .*other"
    ):
        load_model(f"{tmp_path / 'other'}+{name}")
    shutil.rmtree(moved / "first")
    with pytest.raises(
        ValueError, match=r"its base .*moved/first is not there; name its base as BASE\+"
    ):
        load_model(moved / "merged")
    assert_equal(params(f"{work / 'base'}+{name}"), params(name))


@pytest.mark.slow
def test_a_base_and_an_adapter_of_stages_are_one_name_in_a_recipe_and_move_with_it(work, tmp_path):
    run = tmp_path / "w+1" / "run"
    shutil.copytree(work / "run", run)
    convert(run / "first", tmp_path / "a+b", peft=True)
    values = {"init": f"whole+{tmp_path / 'a+b'}", "adapter": ADAPTER, "lr": 0.0}
    Recipe(recipe(work, STAGES | {"peft": values}), run, ["peft"]).run()
    assert_equal(trained(run / "peft"), trained(run / "first"))
    part = read_card(run / "peft").part
    assert part and part.base == "../whole"
    name = f"{run / 'whole'}+{run / 'peft'}"  # a plus in the names of both
    assert_equal(params(name), params(run / "peft"))


def test_a_mistake_of_another_stage_is_told_once(work, tmp_path):
    own = {"init": "first", "adapter": ADAPTER}
    config = recipe(work, {"first": STAGES["first"] | {"lr": -1.0}, "part": own})
    with pytest.raises(ValueError, match="lr=-1") as raised:
        Recipe(config, tmp_path)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"rank": 0}}, "adapter.rank=0; expected at least 1; leave it out"),
        ({"adapter": {"rank": 65}}, "adapter.rank=65; expected at most 64, the model's width"),
        ({"adapter": {"rank": 2, "alpha": -1.0}}, "the adapter: alpha is -1.0; expected a number"),
        ({"adapter": {"rank": 2, "dropout": 1.0}}, "dropout is 1.0; expected a number from 0"),
        ({"adapter": {"rank": 2, "matrices": ("q_proj",)}}, "layers have no matrix 'q_proj'; they"),
        ({"adapter": {"rank": 2, "matrices": ()}}, r"matrices=\(\); expected one or more of query"),
        ({"adapter": {"alpha": 2.0}}, "adapter.alpha is given and part.adapter.rank is not"),
        ({"adapter": {"rank": 2}, "trainable": "layers:0"}, "an adapter or layers can be trained"),
        ({"trainable": "layers:3-1/mlp"}, "trainable='layers:3-1/mlp'; expected something like"),
        ({"trainable": "mlp"}, "trainable='mlp'; expected something like layers:20-25/mlp"),
        ({"trainable": "layers:0/wq"}, "layers have no 'wq'; they have attention, mlp, query"),
        ({"weights_dtype": "int8"}, "weights_dtype='int8' is for weights that are frozen"),
        ({"weights_dtype": "int4", "adapter": ADAPTER}, "weights_dtype='int4': expected int8"),
        ({"adapter": ADAPTER, "init": "random"}, "init='random': weights that are not"),
        ({"adapter": {"rank": 2, "merge": True}}, "adapter.merge: .*base has no adapter to merge"),
        ({"trainable": "layers:2"}, "trainable: layer 2 is none of the model's 2"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_trained_is_refused_before_any_work(changes, message, work, tmp_path):
    config = recipe(work, {"part": changes})
    if changes.get("init") == "random":
        config.part.preset, config.tokenizer = "tiny", str(work / "base" / "tokenizer")
    with pytest.raises(ValueError, match=f"part.*{message}"):
        Recipe(config, tmp_path)


def test_an_adapter_of_another_shape_does_not_go_on(work, tmp_path):
    own = {"init": "first", "adapter": {"rank": 2}}
    config = recipe(work, {"first": STAGES["first"], "part": own})
    with pytest.raises(ValueError, match=r"that of first is rank 4, alpha 8, .*here it is rank 2"):
        Recipe(config, tmp_path)
