"""What the TPU compiler makes of the recipes, without a TPU."""

import dataclasses

import jax
import pytest

from qalign_jax.configs import common, math_cot, slices
from qalign_jax.fits import Setting, compile_training, fits, meshes, model_time, table
from qalign_jax.models.presets import preset
from qalign_jax.parallel.topologies import CHIPS, GIB, Slice, parse_slice

FULL = Setting("", "full", 1)
pytest.importorskip("libtpu")


@pytest.fixture(scope="module", autouse=True)
def without_flags_of_the_cpu_backend():
    """libtpu ends the process over flags that it does not know; the CPU backend has read them."""
    jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")
        yield


@pytest.fixture(scope="module")
def tiny():
    config = math_cot.get_config("tiny")
    config.mesh = "fsdp:2,tensor:2"
    config.evaluation.systems.steered = common.system(
        "response_alignment", expert="question_alignment", antiexpert="response_alignment_only"
    )
    return config


@pytest.fixture(scope="module")
def compiled(tiny):
    return fits(tiny, parse_slice("v5e-4"))


def test_every_stage_of_a_recipe_is_compiled_and_told(compiled, tiny):
    assert compiled["topology"] == "v5e:2x2" and compiled["devices"] == 4 and compiled["fits"]
    assert list(compiled["stages"]) == list(tiny.stages)
    programs = compiled["stages"]["evaluation"]["programs"]
    assert {"base prefill", "base decode", "steered decode", "qalign prefill"} <= set(programs)
    told = table(compiled)
    assert all(stage in told for stage in tiny.stages) and "modelled" in told


def test_the_donated_state_is_aliased_whole(compiled):
    for stage in ("question_alignment", "response_alignment"):
        found = compiled["stages"][stage]  # tiny matrices are padded to the chip's tiles
        assert 1 <= found["aliased_bytes"] / found["state_bytes"] < 1.05
    for program in compiled["stages"]["evaluation"]["programs"].values():
        assert program["aliased_bytes"] >= 0.99 * program["state_bytes"]


def test_three_models_decode_in_one_program_that_holds_them_all(compiled):
    programs = compiled["stages"]["evaluation"]["programs"]
    one, three = (programs[f"{system} decode"] for system in ("base", "steered"))
    assert 2 < three["state_bytes"] / one["state_bytes"] < 4  # caches and outputs
    assert three["flops"] == pytest.approx(3 * one["flops"])


def test_weights_are_gathered_and_gradients_scattered(compiled):
    collectives = compiled["stages"]["question_alignment"]["collectives"]
    assert collectives["all-gather"] > 0 and collectives["reduce-scatter"] > 0


def test_what_does_not_fit_is_told_with_the_bytes_it_needs():
    found = compile_training(
        preset("llama2_7b"), parse_slice("v5e:2x2"), dataclasses.replace(FULL, mesh="fsdp:2x2"),
        rows=8, length=512,
    )  # fmt: skip
    assert not found.fits and found.peak_bytes > 15.75 * GIB


def test_bad_requests_end_before_anything_is_compiled(tiny):
    v5e = parse_slice("v5e-4")
    with pytest.raises(ValueError, match="no stage 'training' to compile; there are question_al"):
        fits(tiny, v5e, stages=["training"])
    tiny = tiny.copy_and_resolve_references()
    tiny.mesh = "fsdp:8"
    with pytest.raises(ValueError, match="makes 8 devices, but 4 are here"):
        fits(tiny, v5e)
    with pytest.raises(ValueError, match="9 rows are no multiple of 2"):
        compile_training(preset("tiny"), v5e, Setting("fsdp:2,tensor:2", "full", 1), 9, 128)


def test_model_time_is_the_slower_of_chip_and_links_or_their_sum():
    chip = CHIPS["v5e"]
    second = {"flops": 197e12, "hbm_bytes": 819e9, "wire_bytes": 100e9}
    assert model_time(chip, 197e12, 0, 0) == (1, 1)
    assert model_time(chip, 0, 819e9 * 2, 100e9) == (2, 3)
    assert model_time(chip, **second) == (1, 2)


def test_meshes_worth_trying_divide_the_slice_and_the_model():
    seventy = preset("llama2_70b")
    assert meshes(Slice("v5p", (4, 4, 4)), seventy) == [
        "fsdp:16x4,tensor:1", "fsdp:16,tensor:4", "fsdp:8,tensor:8",
    ]  # fmt: skip
    assert meshes(Slice("v5e", (4, 4), 2), preset("llama2_7b"))[0] == "data:2,fsdp:4x4,tensor:1"


def test_a_slice_in_the_recipes_argument_gives_its_mesh():
    assert math_cot.get_config("llama2_70b,v5p-128").mesh == "fsdp:16,tensor:4"
    assert math_cot.get_config("llama2_7b,v5e:4x4").mesh == "fsdp:4x4"
    with pytest.raises(ValueError, match=r"llama2_7b has no setting for v5e:2x2; it has"):
        math_cot.get_config("llama2_7b,v5e-4")
    with pytest.raises(ValueError, match="the chips are v4"):
        math_cot.get_config("llama2_7b,h100")


@pytest.mark.slow
def test_7b_on_sixteen_v5e_fits_scatters_its_gradients_and_aliases_its_state():
    model = preset("llama2_7b")
    found = compile_training(
        model, parse_slice("v5e-16"), dataclasses.replace(FULL, mesh="fsdp:4x4"), 128, 512
    )
    assert found.fits and found.peak_bytes <= 14 * GIB
    # no matrix' gradient is all-reduced, only norms and scalars are
    assert found.collectives["all-reduce"] < model.d_model * model.d_ff * 2
    assert found.collectives["reduce-scatter"] > model.num_parameters * 2
    assert 1 <= found.aliased_bytes / found.state_bytes < 1.001
    assert found.mfu[1] >= 0.55  # modelled, nothing overlapped


@pytest.mark.release
@pytest.mark.parametrize(("model", "where"), slices.MESHES)
def test_every_preset_fits(model, where):
    config = math_cot.get_config(f"{model},{where}")
    found = fits(config, parse_slice(where), stages=["question_alignment"], suggest=False)
    stage = found["stages"]["question_alignment"]
    assert stage["fits"]
    assert 1 <= stage["aliased_bytes"] / stage["state_bytes"] < 1.001
    assert stage["compile_s"] < 180
