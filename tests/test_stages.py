"""What a stage asks for, and what makes no sense whatever runs it."""

import pytest

from qalign_jax.configs import common
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.stages import (
    check_rows,
    check_stage,
    mesh_spec,
    model_shape,
    system_sources,
    training_config,
)


@pytest.fixture
def config():
    config = common.recipe("two", ("tuned", "scored"), mesh="fsdp:4,tensor:2")
    config.tuned = common.training("random", {}, preset="tiny")
    config.scored = common.evaluation(
        systems={"tuned": common.system("tuned")}, benchmarks={"mgsm": common.benchmark()}
    )
    return config


def test_an_evaluation_has_a_mesh_of_its_own_or_that_of_the_recipe(config):
    assert mesh_spec(config, "tuned") == mesh_spec(config, "scored") == "fsdp:4,tensor:2"
    config.scored.mesh = "tensor:8"
    assert mesh_spec(config, "scored") == "tensor:8"
    assert mesh_spec(config, "tuned") == "fsdp:4,tensor:2"


def test_each_model_of_a_system_has_its_preset():
    steered = common.system(
        "random", expert="random", antiexpert="random", preset="llama2_70b", small_preset="tiny"
    )
    assert system_sources(steered) == [
        ("random", "llama2_70b"), ("random", "tiny"), ("random", "tiny"),
    ]  # fmt: skip
    assert system_sources(common.system("tuned")) == [("tuned", "")]


def test_the_shape_of_a_stage_is_that_of_its_first_weights(config):
    assert model_shape(config, "tuned", "") == preset("tiny")
    config.tuned.init = "tuned"
    with pytest.raises(ValueError, match="no weights can come from tuned"):
        model_shape(config, "tuned", "")
    with pytest.raises(ValueError, match="no weights can come from scored"):
        model_shape(config, "scored", "")


def test_a_stage_computes_in_its_own_dtype_and_no_longer_than_the_model_reads(config):
    config.tuned.update({"dtype": "bfloat16", "remat": "qkvo"})
    model = training_config("tuned", preset("tiny"), config.tuned)
    assert (model.dtype, model.remat) == ("bfloat16", "qkvo")
    config.tuned.length = 4096
    with pytest.raises(ValueError, match="tuned: length=4096 is more than the model's 2048"):
        training_config("tuned", preset("tiny"), config.tuned)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "evaluat", "kind='evaluat'; it is tokenizer, train or evaluate"),
        ("dtype", "float64", "dtype='float64'; it is float32 or bfloat16"),
        ("remat", "foo", "remat='foo'; it is one of full, qkvo, qkvo_mlp, none"),
        ("length", 0, "length=0; expected at least 2"),
        ("batch_size", 0, "batch_size=0; expected at least 1"),
        ("micro_batches", -1, "micro_batches=-1; expected at least 1"),
        ("rows", -1, "rows=-1; expected at least 0"),
    ],
)
def test_training_that_makes_no_sense_is_refused(key, value, message, config):
    check_stage("tuned", config.tuned)
    config.tuned[key] = value
    with pytest.raises(ValueError, match=f"tuned: {message}"):
        check_stage("tuned", config.tuned)


def test_evaluation_that_makes_no_sense_is_refused(config):
    check_stage("scored", config.scored)
    for change, message in [
        ({"slots": 0}, "scored: slots=0; expected at least 1"),
        ({"dtype": "int8"}, "scored: dtype='int8'"),
        ({"benchmarks": {"mgsm": {"max_new_tokens": -1}}}, "max_new_tokens=-1; expected"),
        ({"systems": {"tuned": {"expert": "tuned"}}}, "give both expert and antiexpert"),
    ]:
        changed = config.copy_and_resolve_references()
        changed.scored.update(change)
        with pytest.raises(ValueError, match=message):
            check_stage("scored", changed.scored)
    for key in ("systems", "benchmarks"):
        changed = config.copy_and_resolve_references()
        changed.scored[key] = common.ConfigDict()
        with pytest.raises(ValueError, match=f"scored: no {key} to evaluate"):
            check_stage("scored", changed.scored)


def test_rows_and_lengths_are_multiples_of_what_the_mesh_makes_of_them(config):
    mesh = make_mesh("fsdp:4,tensor:2")
    config.tuned.update({"rows": 8, "micro_batches": 2})
    check_rows("tuned", config.tuned, mesh)
    config.tuned.rows = 12
    with pytest.raises(ValueError, match="tuned: rows=12 must be a multiple of 8"):
        check_rows("tuned", config.tuned, mesh)
    config.tuned.update({"rows": 8, "length": 511})
    with pytest.raises(ValueError, match="tuned: length=511 must be a multiple of tensor:2"):
        check_rows("tuned", config.tuned, mesh)
