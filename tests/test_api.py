"""The API for notebooks: models and recipes, and what is shown of results."""

import importlib
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest

import qalign_jax
from qalign_jax.checkpoints.model import Model, load_model, save_model
from qalign_jax.checkpoints.part import join
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.configs import demo
from qalign_jax.data.prompts import render
from qalign_jax.decoding.combine import ProxyTuning
from qalign_jax.decoding.engine import Engine
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.params import init_params
from qalign_jax.models.presets import preset
from qalign_jax.models.trainable import Trainable
from qalign_jax.recipe import file
from qalign_jax.reporting.notebook import ShownTrace, fits_html, run_html
from tests import stages
from tests.files import write_jsonl

QUESTIONS = ["How many apples?", "Wie viele?"]
CONFIG, EXECUTION = preset("tiny", vocab_size=420, init_scale=0.3, max_length=96)


def model(tokenizer, seed):
    params = init_params(CONFIG, jax.random.key(seed))
    return Model(CONFIG, EXECUTION, params, tokenizer, "short")


@pytest.fixture(scope="module")
def directories(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("models")
    for seed in range(3):
        save_model(root / str(seed), model(tokenizer, seed))
        write_record(root / str(seed), Record({}, {"seed": seed}))
    return [root / str(seed) for seed in range(3)]


def expected(tokenizer, seeds, prompts, **options):
    models = [model(tokenizer, seed) for seed in seeds]
    engine = Engine([(m.module, m.params) for m in models], eos_ids=(2,), slots=64, **options)
    answers = engine.generate(tokenizer.encode_prompts(prompts), 8)
    return [tokenizer.decode(answer.tokens) for answer in sorted(answers)]


def test_a_loaded_model_continues_prompts_and_answers_questions(directories, tokenizer):
    loaded = qalign_jax.load(directories[0])
    assert loaded.generate(QUESTIONS, 8) == expected(tokenizer, [0], QUESTIONS)
    prompts = [render("short", question) for question in QUESTIONS]
    assert loaded.answer(QUESTIONS, 8) == expected(tokenizer, [0], prompts)
    assert loaded.generate([], 8) == []
    assert qalign_jax.load(directories[0], mesh="fsdp:4,tensor:2").answer(QUESTIONS, 8) == (
        loaded.answer(QUESTIONS, 8)
    )


@pytest.mark.slow
def test_int8_models_generate_what_engines_of_int8_do(directories, tokenizer):
    options = dict(weights_dtype="int8", cache_dtype="int8")
    loaded = qalign_jax.load(directories[0], **options)
    assert loaded.generate(QUESTIONS, 8) == expected(tokenizer, [0], QUESTIONS, **options)
    steered = qalign_jax.ProxyTuned(*directories, alpha=0.7, **options)
    combine = ProxyTuning(0.7)
    assert steered.generate(QUESTIONS, 8) == expected(
        tokenizer, range(3), QUESTIONS, combine=combine, **options
    )
    with pytest.raises(ValueError, match="weights_dtype='int4': expected int8, or nothing"):
        qalign_jax.load(directories[0], weights_dtype="int4")
    with pytest.raises(ValueError, match="cache_dtype='int4': expected int8, or nothing"):
        qalign_jax.ProxyTuned(*directories, cache_dtype="int4")


def test_a_loaded_model_holds_one_set_of_weights_whatever_it_is_asked(directories):
    loaded = qalign_jax.load(directories[0])
    before = sum(array.nbytes for array in jax.live_arrays())
    kept = [loaded.stream(QUESTIONS, 4, slots=slots, seed=slots) for slots in (1, 2)]
    assert sum(array.nbytes for array in jax.live_arrays()) == before
    assert all(list(stream) for stream in kept)


def test_samples_follow_their_seed(directories):
    loaded = qalign_jax.load(directories[0])
    first, again, other = (
        loaded.generate(QUESTIONS, 8, temperature=2.0, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_an_expert_steers(directories, tokenizer):
    steered = qalign_jax.ProxyTuned(*directories, alpha=0.7)
    combine = ProxyTuning(0.7)
    assert steered.generate(QUESTIONS, 8) == expected(
        tokenizer, range(3), QUESTIONS, combine=combine
    )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tokenizer):
    """A large model, a small one, and what stages leave that trained adapters of that."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("large", "small")):
        stages.write_whole(root / name, tokenizer, seed)
    for name, int8 in (("tuned", False), ("tuned_int8", True)):
        part = Trainable(Adapter(rank=4, alpha=8), int8=int8)
        stages.write_part(root / name, root / "small", part, tokenizer)
    return root


def bytes_held(load):
    """What `load` returns, and the bytes of the arrays that it keeps."""
    before = sum(array.nbytes for array in jax.live_arrays())
    loaded = load()
    return loaded, sum(array.nbytes for array in jax.live_arrays()) - before


@pytest.mark.slow
def test_an_adapter_in_int8_stays_beside_its_base_and_answers_as_merged(adapters):
    merged, wide = bytes_held(lambda: qalign_jax.load(adapters / "tuned_int8"))
    name = join(adapters / "small", adapters / "tuned_int8")
    beside, narrow = bytes_held(lambda: qalign_jax.load(name, weights_dtype="int8"))
    answers = merged.answer(QUESTIONS, 8)
    assert beside.answer(QUESTIONS, 8) == answers and narrow < 0.6 * wide
    assert qalign_jax.load(adapters / "small").answer(QUESTIONS, 8) != answers


@pytest.mark.slow
def test_an_expert_that_is_an_adapter_of_the_antiexpert_takes_no_second_copy(adapters, tokenizer):
    roles = [adapters / name for name in ("large", "tuned", "small")]
    steered, held = bytes_held(lambda: qalign_jax.ProxyTuned(*roles))
    models = [load_model(path, weights_dtype="") for path in roles]
    wide = [sum(leaf.nbytes for leaf in jax.tree.leaves(each.params)) for each in models]
    assert wide[1] == wide[2] and wide[0] + wide[2] < held < wide[0] + 1.3 * wide[2]
    engine = Engine(
        [(each.module, each.params) for each in models], ProxyTuning(1.0), eos_ids=(2,), slots=64
    )
    found = sorted(engine.generate(tokenizer.encode_prompts(QUESTIONS), 8))
    assert steered.generate(QUESTIONS, 8) == [tokenizer.decode(each.tokens) for each in found]


def test_an_adapter_of_another_base_is_refused(adapters):
    with pytest.raises(ValueError, match=f"{adapters}/large has .*, and is another model"):
        qalign_jax.load(join(adapters / "large", adapters / "tuned"))
    with pytest.raises(ValueError, match="large: no adapter here; expected one of PEFT's or"):
        small, both = adapters / "small", join(adapters / "small", adapters / "large")
        qalign_jax.ProxyTuned(adapters / "large", both, small)


def test_a_trace_tells_what_the_large_model_alone_would_have_said(directories):
    steered = qalign_jax.ProxyTuned(*directories, alpha=0.7)
    traces = steered.trace(QUESTIONS, 8, slots=1)
    texts = ["".join(trace.text) for trace in traces]
    assert texts == steered.generate(QUESTIONS, 8)
    alone = qalign_jax.load(directories[0])
    for question, trace in zip(QUESTIONS, traces, strict=True):
        assert trace.base_text[0] == alone.trace([question], 1)[0].text[0]
    sampled = [steered.trace(QUESTIONS, 8, temperature=2.0, seed=seed)[0] for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(ValueError, match="prompts is one text; give a list"):
        steered.trace("one text")


def test_a_stream_is_what_is_generated_as_it_comes(directories):
    steered = qalign_jax.ProxyTuned(*directories, alpha=0.7)
    options = dict(max_new_tokens=40, temperature=1.0, seed=3, slots=2)
    prompts = [*QUESTIONS, "多少?"]
    found = list(steered.stream(prompts, **options))
    texts = ["".join(text for number, _, text in found if number == i) for i in range(3)]
    assert texts == steered.generate(prompts, **options)
    ids = [[token for number, token, _ in found if number == i] for i in range(3)]
    assert ids == [trace.tokens for trace in steered.trace(prompts, **options)]
    numbers = [number for number, _, _ in found]
    assert numbers != sorted(numbers)  # two rows are decoded at once
    assert list(steered.stream([])) == []


def test_a_stream_that_is_closed_frees_what_it_held(directories):
    loaded = qalign_jax.load(directories[0])
    before = len(jax.live_arrays())
    stream = loaded.stream(QUESTIONS, 40)
    next(stream)
    assert len(jax.live_arrays()) > before
    stream.close()
    assert len(jax.live_arrays()) == before


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("one text", {}, "prompts is one text; give a list"),
        (["a"], {"top_p": 0.0}, "top_p 0.0"),
        (["a"], {"temperature": -1.0}, "temperature -1.0"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens 0"),
        (["a " * 200], {}, "prompt 0 has .* tokens, but the models' max_length is 96"),
    ],
)
def test_bad_requests_are_refused(prompts, options, message, directories):
    with pytest.raises(ValueError, match=message):
        qalign_jax.load(directories[0]).generate(prompts, **options)
    with pytest.raises(ValueError, match=message):
        qalign_jax.load(directories[0]).stream(prompts, **options)  # at the call


def test_a_steering_that_is_no_number_is_refused_before_weights_are_read(directories):
    with pytest.raises(ValueError, match="alpha=nan: expected a number"):
        qalign_jax.ProxyTuned(*directories, alpha=float("nan"))
    with pytest.raises(ValueError, match="dtype='f16': expected float32 or bfloat16"):
        qalign_jax.load(directories[0], dtype="f16")


def test_a_directory_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: no model here"):
        qalign_jax.load(tmp_path)


def said_by(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_imports_no_jax():
    program = "import qalign_jax, sys; print(*sorted({'jax', 'orbax'} & set(sys.modules)))"
    assert said_by(program) == []
    with pytest.raises(AttributeError, match="no attribute 'loaded'"):
        qalign_jax.loaded  # noqa: B018
    assert set(qalign_jax.__all__) <= set(dir(qalign_jax))


@pytest.mark.parametrize(
    "imports",
    [
        "from qalign_jax.{0} import define_flags; from qalign_jax import {0}",
        "from qalign_jax import {0}; from qalign_jax.{0} import define_flags",
        "import qalign_jax.{0}; from qalign_jax import {0}; "
        "from qalign_jax.{0} import define_flags",
    ],
)
def test_a_name_of_the_package_is_its_function_whatever_is_imported_first(imports):
    names = ("run", "report", "score", "fits")
    program = "import sys, qalign_jax\n"
    for name in names:
        program += imports.format(name) + "\n"
        program += f"print({name}.__module__, qalign_jax.{name} is {name}, "
        program += f"sys.modules['qalign_jax.{name}'].define_flags is define_flags)\n"
    assert said_by(program) == ["qalign_jax.api", "True", "True"] * len(names)


def test_modules_of_the_package_are_its_attributes_still():
    module = importlib.import_module("qalign_jax.run")
    assert isinstance(module, types.ModuleType) and qalign_jax.run is not module
    assert qalign_jax.evaluation is sys.modules["qalign_jax.evaluation"]


def test_overrides_change_a_recipe_as_the_command_line_does():
    changes = {"seed": 5, "fast": True, "pretraining.lr": 1, "evaluation.slots": "7"}
    changes["stages"] = ["vocabulary", "pretraining"]
    for given in ("configs/demo.py", demo.get_config()):
        changed = file.read(given, changes)
        assert changed.seed == changed.evaluation.benchmarks.word_problems.seed == 5
        assert changed.pretraining.steps == 2600 // 100  # by the reference to fast
        assert changed.pretraining.lr == 1.0 and isinstance(changed.pretraining.lr, float)
        assert changed.evaluation.slots == 7
        assert changed.stages == ("vocabulary", "pretraining")
    assert given.seed == 0  # what was given is not changed
    assert file.read("configs/math_cot.py:llama2_7b,v5e-16", {}).mesh == "fsdp:4x4"


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (
            "configs/demo.py",
            {"evaluation.nope": 1},
            "evaluation.nope=1: the recipe has no such",
        ),
        ("configs/demo.py", {"seed": 1.5}, "config.seed=1.5; expected a whole number"),
        (
            "configs/demo.py",
            {"pretraining.lr": "much"},
            "pretraining.lr=much; expected a number",
        ),
        ("configs/demo.py", {"a b": 1}, "Could not parse 'a b'"),
        ("configs/demo.py:nope", {}, "the demo's argument is one of control"),
        ("configs/nope.py", {}, "there is no file configs/nope.py"),
        ("tests/broken_recipe.py", {}, "broken_recipe.py:5: the recipe raised KeyError"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused(recipe, overrides, message, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    with pytest.raises(ValueError, match=message):
        qalign_jax.run(recipe, overrides=overrides)


@pytest.mark.slow
def test_a_recipe_in_memory_is_fitted_where_the_environment_describes_a_tpu(monkeypatch, capfd):
    pytest.importorskip("libtpu")
    # of the TPU runtime of a notebook: another slice than the one to compile for
    for name, value in {
        "TPU_ACCELERATOR_TYPE": "v6e-1",
        "TPU_CHIPS_PER_HOST_BOUNDS": "1,1,1",
        "TPU_HOST_BOUNDS": "1,1,1",
        "TPU_WORKER_ID": "0",
        "TPU_TOPOLOGY": "1x1",
    }.items():
        monkeypatch.setenv(name, value)
    config = demo.get_config()
    config.mesh = "fsdp:4"
    changes = {"pretraining.rows": 4}
    found = qalign_jax.fits(config, "v5e-4", stages=["pretraining"], overrides=changes)
    assert found["fits"] and found["topology"] == "v5e:2x2"
    assert list(found["stages"]) == ["pretraining"]
    assert "pretraining: compiling the training step" in capfd.readouterr().err
    with pytest.raises(ValueError, match="no stage 'nope' to compile; there are pretraining"):
        qalign_jax.fits(config, "v5e-4", stages=["nope"])
    with pytest.raises(ValueError, match="no slice 'v9-4'; the chips are v4"):
        qalign_jax.fits("configs/demo.py", "v9-4", overrides={"seed": 1}, suggest=False)
    with pytest.raises(ValueError, match=r"nope=1: the recipe has no such"):
        qalign_jax.fits("configs/demo.py", "v5e-4", overrides={"nope": 1})


def test_scores_are_a_dict_that_is_shown_as_a_table(tmp_path):
    rows = [
        {"output": "The answer is 3,5.", "answer": "3.5", "language": "de"},
        {"output": "The answer is -7", "answer": "7", "language": "de"},
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    scored = qalign_jax.score("mgsm", path)
    assert scored["n"] == 2 and json.loads(json.dumps(scored)) == dict(scored)
    shown = scored._repr_html_()
    assert "<b>mgsm</b>" in shown and "50.0" in shown and "9.4 to 90.5" in shown
    assert shown.index("published reader") < shown.index("sound reader")


def test_a_runs_result_is_shown_with_intervals_the_comparison_and_a_link():
    result = {
        "de": 40.0, "non_english": 40.0, "average": 40.0,
        "intervals": {"de": [30.0, 50.0], "non_english": [30.0, 50.0]},
    }  # fmt: skip
    versus = {"difference": 30.0, "interval": [20.0, 40.0], "p": 0.0001}
    better = result | {"versus": {"baseline": "<ralign>", "de": versus, "non_english": versus}}
    outcome = {
        "workdir": "runs/a", "stages": {"one": "done", "two": "open"}, "report": "runs/a/b.html",
        "systems": {"<ralign>": {"mgsm": result}, "qalign": {"mgsm": better}},
    }  # fmt: skip
    shown = run_html(outcome)
    assert "&lt;ralign&gt;" in shown and "<ralign>" not in shown
    assert re.search(r"<td>40\.0\*\s*<br><span[^>]*>30\.0 to 50\.0</span>", shown)
    assert "+30.0 points against" in shown and "+20.0 to +40.0, p = 0.0001" in shown
    assert "Not finished: two." in shown and '<a href="runs/a/b.html"' in shown
    assert "<a" not in run_html(outcome | {"report": None})


def test_what_does_not_fit_is_shown_with_what_does():
    stage = {
        "fits": False, "peak_gib": 20.5, "modelled_step_s": None,
        "modelled_step_overlapped_s": None, "modelled_mfu": None, "modelled_mfu_overlapped": None,
    }  # fmt: skip
    other = {"topology": "v5e:2x2", "mesh": "fsdp:4", "peak_gib": 5.25}
    result = {
        "topology": "v5e:1x1", "devices": 1, "hbm_gib": 15.75, "fits": False,
        "stages": {"tuning": stage}, "suggestions": {"tuning": [other], "scoring": []},
    }  # fmt: skip
    shown = fits_html(result)
    assert "<b>Does not fit</b> v5e:1x1, 1\ndevice of 15.75 GiB" in shown
    assert "<td>NO</td>\n<td>20.50 GiB</td>\n<td>-</td>\n<td>-</td>" in shown
    assert "tuning fits v5e:2x2 with mesh=fsdp:4, 5.25 GiB" in shown
    assert "scoring: nothing that was tried fits" in shown


def test_a_traces_tokens_are_shaded_by_how_far_they_moved_and_escaped():
    trace = ShownTrace(
        tokens=[5, 6, 7],
        text=[" <b>", "", "&\n"],
        base_tokens=[5, 9, 8],
        base_text=[" <b>", '"x"', "\n<i>"],
        base_probability=[0.9, 0.5, 0.251],
        probability=[0.93, 0.8, 0.1],
        moved=[0.03, 0.8, -0.15],
    )
    shown = trace._repr_html_()
    spans = re.findall(r'<span style="(.*?)" title="(.*?)">(.*?)</span>', shown, re.DOTALL)
    assert spans == [
        (
            "background: rgba(46, 125, 255, 0.03)",
            "93 %, moved by +3 points; the base alone: the same, 90 %",
            " &lt;b&gt;",
        ),
        (
            "background: rgba(46, 125, 255, 0.80); border-bottom: 2px solid currentColor",
            "80 %, moved by +80 points; the base alone: “&#34;x&#34;”, 50 %",
            "",
        ),
        (
            "background: rgba(255, 112, 32, 0.15); border-bottom: 2px solid currentColor",
            "10 %, moved by -15 points; the base alone: “↵&lt;i&gt;”, 25 %",
            "&amp;\n",
        ),
    ]
    assert 'line-height: 1.7"><span' in shown and "</span></div>" in shown  # no space between
