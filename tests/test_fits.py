"""The recipes compiled ahead of time by the TPU compiler, without the TPU."""

import dataclasses
import json
import warnings

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from qalign_jax.ahead.compile import compile_round, compile_training
from qalign_jax.ahead.cost import Collective, Program
from qalign_jax.ahead.jobs import DecodingJob, Workload, meshes
from qalign_jax.ahead.roofline import link_seconds, model_time
from qalign_jax.configs import math_code, math_cot, proxy_tuning, slices
from qalign_jax.fits import fits, on_slice, table
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.llama import Llama
from qalign_jax.models.presets import preset
from qalign_jax.parallel.chips import CHIPS, GIB, Slice, parse_slice
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe import parts

pytest.importorskip("libtpu")


@pytest.fixture(scope="module", autouse=True)
def without_flags_of_the_cpu_backend():
    """libtpu ends the process over unknown flags; the CPU backend has read its own by then."""
    jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")
        yield


@pytest.fixture(scope="module")
def tiny():
    config = math_cot.get_config("tiny")
    config.mesh, config.evaluation.mesh = "fsdp:2,tensor:2", "data:2,tensor:2"
    config.evaluation.systems.steered = parts.system(
        "response_alignment", expert="question_alignment", antiexpert="response_alignment_only"
    )
    return config


@pytest.fixture(scope="module")
def compiled(tiny):
    return fits(tiny, parse_slice("v5e-4"))


@pytest.mark.slow
def test_every_stage_of_a_recipe_is_compiled_and_reported(compiled, tiny):
    assert compiled["topology"] == "v5e:2x2" and compiled["devices"] == 4 and compiled["fits"]
    stages = [stage for stage in tiny.stages if stage != "reasoning"]  # it uses no device
    assert list(compiled["stages"]) == stages
    programs = compiled["stages"]["evaluation"]["programs"]
    assert {"base prefill", "base decode", "steered decode", "qalign prefill"} <= set(programs)
    told = table(compiled)
    assert all(stage in told for stage in stages) and "modelled" in told


@pytest.mark.slow
def test_the_donated_state_is_aliased_whole(compiled):
    for stage in ("question_alignment", "response_alignment"):
        found = compiled["stages"][stage]  # tiny matrices are padded to the chip's tiles
        assert 1 <= found["aliased_bytes"] / found["state_bytes"] < 1.05
    for program in compiled["stages"]["evaluation"]["programs"].values():
        assert program["aliased_bytes"] >= 0.99 * program["state_bytes"]


@pytest.mark.slow
def test_three_models_decode_in_one_program_that_holds_them_all(compiled):
    programs = compiled["stages"]["evaluation"]["programs"]
    one, three = (programs[f"{system} decode"] for system in ("base", "steered"))
    assert 2 < three["state_bytes"] / one["state_bytes"] < 4  # caches and outputs
    assert three["flops"] == pytest.approx(3 * one["flops"])


@pytest.mark.slow
def test_a_round_of_drafts_is_compiled_and_its_tokens_are_expected_ones(compiled):
    programs = compiled["stages"]["evaluation"]["programs"]
    plain, drafting = (programs[f"steered {name}decode"] for name in ("", "speculative "))
    drafts, kept = drafting["draft_tokens"], drafting["acceptance"]
    assert drafts > 1 and kept == Workload.acceptance
    assert plain["tokens_per_round"] == 1 and "acceptance" not in plain
    expected = sum(kept**place for place in range(drafts + 1))
    assert drafting["tokens_per_round"] == round(expected, 3)
    seconds = drafting["modelled_step_s"]
    assert drafting["modelled_token_s"] == pytest.approx(seconds / expected, abs=1e-6)
    # each of three models sees k + 1 tokens
    assert drafting["flops"] == pytest.approx((drafts + 1) * plain["flops"])
    told = f"{drafts} drafts a round, {drafting['tokens_per_round']:.2f} tokens where"
    assert (
        f"evaluation steered speculative decode: of {told}" in table(compiled)
        and "base speculative decode" not in programs
    )


@pytest.mark.slow
def test_weights_are_gathered_and_gradients_scattered(compiled):
    collectives = compiled["stages"]["question_alignment"]["collectives"]
    assert collectives["all-gather"]["f32"] > 0 and collectives["reduce-scatter"]["f32"] > 0


@pytest.mark.slow
def test_evaluation_is_compiled_on_its_own_mesh_which_gathers_no_weight(compiled, tiny):
    shared = tiny.copy_and_resolve_references()
    shared.evaluation.mesh = ""
    shared.evaluation.systems = {"base": shared.evaluation.systems.base}
    shared.evaluation.baseline = ""
    alone = fits(shared, parse_slice("v5e-4"), stages=["evaluation"])

    def gathered(found):
        decode = found["stages"]["evaluation"]["programs"]["base decode"]
        return sum(decode["collectives"]["all-gather"].values())

    assert gathered(compiled) < gathered(alone)


@pytest.mark.slow
def test_solutions_of_several_turns_have_room_in_the_caches_of_the_fullest_slice():
    config = math_code.get_config("llama2_13b,v6e:4x4")
    found = fits(config, parse_slice("v6e:4x4"), stages=["evaluation"])["stages"]["evaluation"]
    assert found["fits"] and found["length"] == 4096  # four turns of 512, three outputs, a prompt


@pytest.mark.slow
def test_a_sweep_lists_every_setting_that_fits_the_fastest_first(tiny):
    tiny = tiny.copy_and_resolve_references()
    tiny.question_alignment.rows = 2  # rules out pure fsdp and micro-batches
    found = fits(tiny, parse_slice("v5e-4"), stages=["question_alignment"], sweep_settings=True)
    swept = found["suggestions"]["question_alignment"]
    assert {one["remat"] for one in swept} == {"full", "qkvo", "qkvo_mlp"}
    assert {one["mesh"] for one in swept} == {"fsdp:2,tensor:2"}
    steps = [one["modelled_step_s"] for one in swept]
    assert steps == sorted(steps) and steps[0] < steps[-1]
    assert f"mesh={swept[0]['mesh']} remat={swept[0]['remat']}" in table(found)


@pytest.mark.slow
def test_where_a_stage_does_not_fit_settings_that_fit_are_suggested(tiny):
    large = tiny.copy_and_resolve_references()
    large.question_alignment.update({"rows": 2**12, "length": 2048, "remat": "none"})
    found = fits(large, parse_slice("v5e-4"), stages=["question_alignment"])
    stage, tried = found["stages"]["question_alignment"], found["suggestions"]["question_alignment"]
    assert not found["fits"] and stage["spare_gib"] < 0
    assert tried and all(one["fits"] and one["topology"] == "v5e:2x2" for one in tried)
    assert all(one["remat"] == "full" and one["spare_gib"] > 0 for one in tried)
    assert " NO " in table(found) and "fits with --topology=v5e:2x2" in table(found)


def test_a_step_that_does_not_fit_is_reported_with_the_bytes_it_needs():
    found = compile_training(
        Llama(*preset("llama2_7b")), parse_slice("v5e:2x2"), "fsdp:2x2", rows=8, length=512
    )
    assert not found.fits and found.peak_bytes > 15.75 * GIB
    assert found.spare_bytes == found.allowed_bytes - found.peak_bytes < 0


def test_a_step_that_needs_terabytes_is_reported_too():
    config, execution = preset("tiny")
    model = Llama(config, dataclasses.replace(execution, remat="none"))
    found = compile_training(model, parse_slice("v5e:2x2"), "fsdp:2,tensor:2", 2**15, 2048)
    assert not found.fits and found.peak_bytes > 2**40


def test_bad_requests_end_before_anything_is_compiled(tiny):
    v5e = parse_slice("v5e-4")
    with pytest.raises(ValueError, match="no stage 'training' to compile; there are question_al"):
        fits(tiny, v5e, stages=["training"])
    tiny = tiny.copy_and_resolve_references()
    for key, value, message in [
        ("remat", "foo", "remat='foo'; it is one of full"),
        ("dtype", "float64", "dtype='float64'; it is one of float32, bfloat16"),
        ("micro_batches", 0, "micro_batches=0; expected at least 1"),
        ("rows", -1, "rows=-1; expected at least 0"),
        ("length", 4096, "length=4096 is more than the model's 2048"),
        ("init", "question_alignment", None),
    ]:
        changed = tiny.copy_and_resolve_references()
        changed.question_alignment[key] = value
        message = message and f"question_alignment(.|: ){message}"
        with pytest.raises(ValueError, match=message or "which does not come before it"):
            fits(changed, v5e)
    with pytest.raises(
        ValueError, match="prompts of 4000 tokens leave no room in the models' 2048"
    ):
        fits(tiny, v5e, workload=Workload(prompt_tokens=4000))
    tiny.evaluation.mesh = "tensor:4"
    with pytest.raises(ValueError, match="2 key-value heads cannot be split over tensor:4"):
        fits(tiny, v5e)
    tiny.mesh = "fsdp:8"
    with pytest.raises(ValueError, match="makes 8 devices, but 4 are here"):
        fits(tiny, v5e)
    tiny.mesh, tiny.question_alignment.length = "fsdp:2,tensor:2", 511
    with pytest.raises(ValueError, match="length=511 must be a multiple of tensor:2"):
        fits(tiny, v5e)
    tiny.question_alignment.update({"length": 512, "rows": 9})
    with pytest.raises(ValueError, match="rows=9 must be a multiple of 2"):
        fits(tiny, v5e)
    with pytest.raises(ValueError, match="9 rows are no multiple of 2"):
        compile_training(Llama(*preset("tiny")), v5e, "fsdp:2,tensor:2", 9, 128)


def test_a_stage_that_computes_nothing_on_devices_is_left_out(tiny):
    tiny = tiny.copy_and_resolve_references()
    tiny.stages, tiny.loud = ("loud",), parts.stage("tests.recipe.test_stages", text="a")
    with pytest.raises(ValueError, match="the recipe has no stage to compile"):
        fits(tiny, parse_slice("v5e-4"))


def test_model_time_is_the_slower_of_chip_and_links_or_their_sum():
    chip = CHIPS["v5e"]
    assert model_time(chip, 197e12, 0, 0) == (1, 1)
    assert model_time(chip, 0, 819e9 * 2, 1) == (2, 3)
    assert model_time(chip, 197e12, 819e9, 1) == (1, 2)
    assert model_time(chip, 197e12, 819e9, 3) == (3, 4)


def test_links_of_all_torus_axes_of_a_group_carry_it_and_dcn_what_goes_between_slices():
    v5p, two = CHIPS["v5p"], Slice("v5e", (2, 2), 2)
    torus = make_mesh("fsdp:16,tensor:4", Slice("v5p", (4, 4, 4)).devices())
    gather = Collective("all-gather", "bf16", 4 * 10**9, (0, 1, 2, 3), 2, "")  # tensor
    across = dataclasses.replace(gather, members=tuple(range(0, 64, 4)))  # fsdp, a plane
    alone = link_seconds(Program((gather,), 0), v5p, torus)
    assert alone == pytest.approx(2 * 4 * (3 / 4) / 200)  # GB over a third of 600 GB/s
    assert link_seconds(Program((across,), 0), v5p, torus) == pytest.approx(2 * 4 * (15 / 16) / 400)
    slices = make_mesh("data:2,fsdp:2x2", two.devices())
    between = dataclasses.replace(gather, kind="all-reduce", members=(0, 4))
    assert link_seconds(Program((between,), 0), CHIPS["v5e"], slices) == pytest.approx(8 / 3.125)


def test_meshes_worth_trying_divide_the_slice_and_the_model():
    seventy = preset("llama2_70b").config
    assert meshes(Slice("v5p", (4, 4, 4)), seventy) == [
        "fsdp:16x4,tensor:1", "fsdp:16,tensor:4", "fsdp:8,tensor:8",
    ]  # fmt: skip
    assert (
        meshes(Slice("v5e", (4, 4), 2), preset("llama2_7b").config)[0] == "data:2,fsdp:4x4,tensor:1"
    )


def test_a_slice_in_the_recipes_argument_gives_its_mesh():
    config = math_cot.get_config("llama2_70b,v5p-128")
    assert (config.mesh, config.evaluation.mesh) == ("fsdp:16,tensor:4", "data:8,tensor:8")
    assert proxy_tuning.get_config("llama2_70b,v5p-16").mesh == "tensor:8"
    assert math_cot.get_config("llama2_7b,v5e:4x4").mesh == "fsdp:4x4"
    with pytest.raises(ValueError, match=r"llama2_7b has no setting for v5e:2x2; it has"):
        math_cot.get_config("llama2_7b,v5e-4")
    with pytest.raises(ValueError, match="the chips are v4"):
        math_cot.get_config("llama2_7b,h100")


def recipe_on_v5e_16(*argv: str, count: int = 1):
    """The recipe of a command line as `fits` compiles it for v5e-16, and its argument."""
    values = flags.FlagValues()
    argv = ("fits", *argv)
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of ml_collections' own loader
        values(argv)
    path = config_flags.get_config_filename(values["config"])
    overrides = config_flags.get_override_values(values["config"])
    return on_slice(values.config, path, overrides, parse_slice("v5e-16", count))


def test_without_a_slice_the_recipe_has_its_meshes_for_the_topology():
    config, argument = recipe_on_v5e_16("--config=configs/math_cot.py:llama2_7b,baselines")
    assert argument == "llama2_7b,v5e:4x4,baselines"
    assert (config.mesh, config.evaluation.mesh) == ("fsdp:4x4", "data:2,tensor:8")
    assert config.stages[3] == "gsm8k_only"


def test_other_values_of_the_command_line_stay_with_the_meshes():
    given = "--config.base=tuned", "--config.evaluation.mesh=tensor:16", "--config.seed=2"
    config, argument = recipe_on_v5e_16("--config=configs/math_cot.py:llama2_7b", *given)
    assert argument == "llama2_7b,v5e:4x4" and config.mesh == "fsdp:4x4" and config.seed == 2
    assert config.evaluation.mesh == "tensor:16" and config.question_alignment.init == "tuned"


@pytest.mark.parametrize(
    ("argv", "mesh"),
    [
        (("--config=configs/math_cot.py:llama2_7b", "--config.mesh=fsdp:16"), "fsdp:16"),
        (("--config=configs/math_cot.py:llama2_7b,v6e-8",), "fsdp:2x4"),  # a slice by name
        (("--config=configs/math_cot.py:tinyllama_1b",), "data:1,fsdp:-1,tensor:1"),  # no entry
        (("--config=configs/demo.py:control",), "single"),  # no preset
    ],
)
def test_where_the_recipe_says_or_has_no_mesh_it_stays_as_it_is(argv, mesh):
    config, argument = recipe_on_v5e_16(*argv)
    assert argument == "" and config.mesh == mesh


def test_meshes_of_one_slice_are_not_taken_for_several():
    assert recipe_on_v5e_16("--config=configs/math_cot.py:llama2_7b", count=2)[1] == ""


def test_a_7b_is_steered_by_models_with_its_tokenizer_that_fit_beside_it():
    config = proxy_tuning.get_config("llama2_7b,v6e-1")
    assert (config.mesh, config.small, config.evaluation.slots) == ("tensor:1", "tinyllama_1b", 8)
    assert config.evaluation.systems.large_proxy.small_preset == "tinyllama_1b"
    config = proxy_tuning.get_config("llama2_13b,v6e:4x4")
    assert (config.small, config.evaluation.slots) == ("llama2_7b", 64)


def matrix_bytes(model, tensor):
    """Bytes of a layer's smallest matrix, times the layers, as bf16 gradients of a tensor shard."""
    return 2 * model.n_layers * model.d_model * model.n_kv_heads * model.head_size // tensor


def scatters_its_gradients(found, model, tensor) -> bool:
    """Whether gradients of matrices are scattered; only scalars and norms' may be all-reduced."""
    summed = sum(found["collectives"].get("all-reduce", {}).values())
    scattered = sum(found["collectives"].get("reduce-scatter", {}).values())
    return summed < matrix_bytes(model, tensor) and scattered > 2 * model.num_parameters / tensor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where", "mesh", "remat", "rows", "length", "gib", "mfu"),
    [
        pytest.param(
            *("llama2_7b", "v5e:4x4", "fsdp:4x4", "full", 128, 512, 14, 0.55),
            marks=pytest.mark.release,
        ),
        ("llama2_70b", "v5e:16x16", "fsdp:32,tensor:8", "full", 256, 2048, 10.5, 0.50),
    ],
)
def test_a_training_step_fits_scatters_its_gradients_and_aliases_its_state(
    name, where, mesh, remat, rows, length, gib, mfu
):
    (config, execution), where = preset(name), parse_slice(where)
    model = Llama(config, dataclasses.replace(execution, remat=remat))
    found = compile_training(model, where, mesh, rows, length)
    assert found.fits and found.peak_bytes <= gib * GIB
    tensor = make_mesh(mesh, where.devices()).shape["tensor"]
    assert scatters_its_gradients(found.to_json(), config, tensor)
    assert 1 <= found.aliased_bytes / found.state_bytes < 1.001
    assert found.mfu[1] >= mfu  # modelled, no overlap


@pytest.mark.slow
def test_an_adapter_on_int8_weights_trains_a_7b_on_one_v5e_chip():
    config = math_cot.get_config("llama2_7b,v5e-1")
    where, stages = parse_slice("v5e:1x1"), ["question_alignment"]
    found = fits(config, where, stages=stages, suggest_others=False)
    step = found["stages"]["question_alignment"]
    assert step["fits"] and step["peak_gib"] < 12
    # the paper's 128 examples of up to 512 tokens, a ninth of them at a time
    assert (step["rows"], step["length"], step["micro_batches"]) == (54, 512, 9)
    assert 1 <= step["aliased_bytes"] / step["state_bytes"] < 1.001
    model, part = preset("llama2_7b")[0], 2 * 64 * 32  # of A and B, all layers
    inner = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    trained, frozen = part // 2 * inner, model.num_parameters - 2 * 32000 * 4096
    assert step["state_bytes"] == pytest.approx(12 * trained + frozen + 4 * 32000 * 4096, rel=0.01)
    assert step["modelled_mfu"] > 0.6  # no overlap
    assert "question_alignment, an adapter of rank 64, int8 weights" in table(found)


@pytest.mark.slow
def test_fsdp_as_one_axis_over_a_slice_would_not_scatter():
    model = Llama(*preset("llama2_7b", n_layers=4))
    found = compile_training(model, parse_slice("v5e:4x4"), "fsdp:16", 16, 512)
    assert not scatters_its_gradients(found.to_json(), model.config, 1)


@pytest.mark.slow
def test_slices_are_joined_by_data_whose_sums_alone_go_over_dcn():
    model = Llama(*preset("llama2_7b", n_layers=4))
    where = parse_slice("v5e:4x4", 2)
    found = compile_training(model, where, "data:2,fsdp:4x4", 32, 512)
    assert found.fits and scatters_its_gradients(found.to_json(), model.config, 1)


STEERED = ("llama2_70b", "llama2_7b", "llama2_7b")


def compiled_step(names, where, mesh, slots, *dtypes, length=1024, room=1024):
    models, where = tuple(Llama(*preset(name)) for name in names), parse_slice(where)
    job = DecodingJob(models, mesh, slots, length // 2, length // 2, *dtypes, draft_tokens=0)
    return compile_round(job.plan(where.devices()), where, room)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "where", "mesh", "slots", "dtypes", "most"),
    [
        (STEERED, "v5p:2x2x2", "tensor:8", 64, (), 1.15),
        (STEERED, "v5p:2x2x2", "tensor:8", 64, ("int8", "int8"), 1.25),
        (("llama2_13b",), "v4:2x2x4", "data:2,tensor:8", 64, (), 1.15),  # five heads a device
        (("smollm2_360m",), "v5e:1x1", "tensor:1", 64, (), 1.15),  # heads of 64
        (("tinyllama_1b",), "v5e:1x1", "tensor:1", 8, (), 1.2),  # and few rows
    ],
    ids=["three", "three, int8", "13B", "360M", "1.1B"],
)
def test_a_decode_step_reads_weights_and_caches_once(names, where, mesh, slots, dtypes, most):
    step = compiled_step(names, where, mesh, slots, *dtypes)
    assert step.fits and 1 <= step.aliased_bytes / step.state_bytes < 1.01
    config = preset(names[0]).config
    bytes_each = 1 if dtypes else 2
    shards = 8 if "tensor:8" in mesh else 1
    matrices = sum(preset(name).config.num_parameters for name in names) * bytes_each / shards
    caches = step.state_bytes
    assert 0.9 < step.floor_bytes / (matrices + caches) < 1.1, config
    assert step.hbm_bytes < most * step.floor_bytes


@pytest.mark.slow
def test_an_adapter_as_expert_adds_less_than_a_fifth_to_a_token():
    on, (large, base, _) = ("v5p:2x2x2", "tensor:8", 8), STEERED
    alone = compiled_step([large], *on)
    small = Llama(*preset(base))
    models = Llama(*preset(large)), small.clone(adapter=Adapter(64)), small
    where = parse_slice(on[0])
    job = DecodingJob(models, *on[1:], 512, 512, draft_tokens=0, shared=True)
    plan = job.plan(where.devices())
    step = compile_round(plan, where, plan.length)
    assert step.fits and 1 <= step.aliased_bytes / step.state_bytes < 1.01
    assert step.hbm_bytes < 1.04 * step.floor_bytes
    own, matrices = small.config, small.config.num_parameters
    read = matrices - own.vocab_size * own.d_model  # of the embedding few rows
    caches = 2 * 2 * 8 * 1024 * own.n_layers * own.d_model  # positions of two models
    more = (step.floor_bytes - alone.floor_bytes) * 8
    assert 1 < more / (2 * read + 2 * caches) < 1.06  # the adapter, of which A is on every device
    assert step.seconds[1] < 1.18 * alone.seconds[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "draft", "where", "mesh", "drafts", "most"),
    [
        (STEERED, None, "v5p:2x2x2", "tensor:8", 8, 0.42),
        (("llama2_13b",), "tinyllama_1b", "v5p:2x2x1", "tensor:4", 6, 0.5),
    ],
    ids=["70B, the expert drafts", "13B, a 1.1B drafts"],
)
def test_a_round_reads_weights_and_caches_once_a_pass(names, draft, where, mesh, drafts, most):
    models, on = [Llama(*preset(name)) for name in names], parse_slice(where)
    drafting = Llama(*preset(draft)) if draft else None
    job = DecodingJob(tuple(models), mesh, 8, 512, 512, draft=drafting, draft_tokens=drafts)
    plan = job.plan(on.devices())
    found = compile_round(plan, on, plan.length, drafts, acceptance=0.93)
    assert found.hbm_bytes < 1.2 * found.floor_bytes
    base = compiled_step(names[:1], where, mesh, 8)
    assert found.seconds[1] / found.tokens < most * base.seconds[1]  # a token's


@pytest.mark.slow
def test_the_bytes_of_a_decode_step_follow_the_tokens_that_it_reads():
    names, where = ("llama2_7b",), ("v5p:2x2x1", "tensor:4", 64)
    few, many = (compiled_step(names, *where, room=room) for room in (256, 1024))
    caches = many.floor_bytes - few.floor_bytes
    assert caches == 2 * 2 * 64 * 768 * 32 * 32 * 128 // 4
    assert few.hbm_bytes < 1.15 * few.floor_bytes
    assert few.hbm_bytes < many.hbm_bytes - 0.95 * caches


@pytest.mark.slow
def test_where_decoding_does_not_fit_other_meshes_are_tried():
    config = math_cot.get_config("llama2_7b")
    config.evaluation.mesh = "data:4"  # every device holds the whole model
    found = fits(config, parse_slice("v5e-4"), stages=["evaluation"])
    assert not found["fits"]
    tried = found["suggestions"]["evaluation"]
    assert tried and all(one["fits"] and one["mesh"] != "data:4" for one in tried)
    assert tried[0]["mesh"] == "data:1,tensor:4"
    assert "evaluation: fits with --topology=v5e:2x2 mesh=data:1,tensor:4" in table(found)


@pytest.mark.parametrize("acceptance", [-0.1, 2, float("nan")])
def test_an_acceptance_is_a_share(acceptance):
    with pytest.raises(ValueError, match=r"acceptance=.*expected a share from 0 to 1"):
        Workload(acceptance=acceptance)


def test_int8_holds_fewer_bytes_and_is_what_is_tried_next():
    config, execution = preset("llama2_7b")
    model = Llama(config, dataclasses.replace(execution, dtype="bfloat16"))
    job = DecodingJob((model,), "tensor:1", 8, 512, 512)
    weights, both = job.smaller()
    assert (weights.weights_dtype, weights.cache_dtype) == ("int8", "")
    assert (both.weights_dtype, both.cache_dtype) == ("int8", "int8")
    assert weights.smaller() == [both] and both.smaller() == []
    norms = config.d_model * (2 * config.n_layers + 1)
    assert job.least_bytes == 2 * config.num_parameters + 2 * norms  # in f32
    tables = 2 * config.vocab_size * config.d_model
    matrices = config.num_parameters - tables - norms
    outputs = 32 * (5 * 4096 + 2 * 11008)
    assert weights.least_bytes == matrices + 4 * outputs + 2 * tables + 4 * norms
    given = weights.asked(parse_slice("v5e-1"))
    assert (given["weights_dtype"], given["cache_dtype"]) == ("int8", "")
    with pytest.raises(ValueError, match="cache_dtype='int4': expected int8"):
        dataclasses.replace(job, cache_dtype="int4").check(parse_slice("v5e-1").devices())


@pytest.mark.slow
def test_where_bf16_does_not_fit_a_chip_int8_is_suggested_before_a_larger_slice():
    config = math_cot.get_config("llama2_7b")
    config.stages, config.evaluation.baseline = ("evaluation",), ""
    config.evaluation.update({"mesh": "tensor:1", "slots": 8})
    config.evaluation.systems = {"one": parts.system("random", preset="llama2_7b")}
    found = fits(config, parse_slice("v5e-1"))
    assert not found["fits"] and found["stages"]["evaluation"]["weights_dtype"] == ""
    tried = found["suggestions"]["evaluation"]
    assert [one["topology"] for one in tried] == ["v5e:1x1"]
    assert (tried[0]["weights_dtype"], tried[0]["cache_dtype"]) == ("int8", "")
    assert "fits with --topology=v5e:1x1 mesh=data:1,tensor:1 weights_dtype=int8" in table(found)
    found["stages"]["evaluation"] |= {"weights_dtype": "int8", "cache_dtype": "int8"}
    assert "evaluation one decode, int8 weights and cache" in table(found)


@pytest.mark.release
@pytest.mark.parametrize(("model", "where"), slices.MESHES | slices.ADAPTED)
def test_every_preset_fits(model, where):
    config = math_cot.get_config(f"{model},{where}")
    kept = "qalign" if (model, where) in slices.ADAPTED else "base"
    config.evaluation.systems = {kept: config.evaluation.systems[kept]}
    config.evaluation.baseline = ""
    stages = ["question_alignment", "evaluation"]
    found = fits(config, parse_slice(where), stages=stages, suggest_others=False)
    print(json.dumps(found), table(found), sep="\n")  # pytest -s: launch/README.md's figures
    training, evaluation = (found["stages"][stage] for stage in stages)
    assert training["fits"] and evaluation["fits"]
    # narrow matrices are padded to the chip's tiles
    assert 1 <= training["aliased_bytes"] / training["state_bytes"] < 1.02
    if where in ("v5e:4x4", "v5e:16x16", "v5p:4x4x4", "v4:4x4x8"):
        tensor = int(config.mesh.partition("tensor:")[2] or 1)
        assert scatters_its_gradients(training, preset(model).config, tensor)


@pytest.mark.release
@pytest.mark.parametrize(("model", "where"), slices.STEERED_MESHES)
def test_every_steered_preset_fits(model, where):
    config = proxy_tuning.get_config(f"{model},{where}")
    found = fits(config, parse_slice(where))
    print(json.dumps(found), table(found), sep="\n")
    assert found["fits"]
