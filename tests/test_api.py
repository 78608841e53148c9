"""The API for notebooks: a model loaded from its directory, and a proxy-tuned one."""

import subprocess
import sys

import jax
import pytest

import qalign_jax
from qalign_jax.checkpoints.model import Model, save_model
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.data.prompts import render
from qalign_jax.decoding.combine import ProxyTuning
from qalign_jax.decoding.engine import Engine
from qalign_jax.models.params import init_params
from qalign_jax.models.presets import preset

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
    return [tokenizer.decode(ids) for _, ids in sorted(answers)]


def test_a_loaded_model_continues_prompts_and_answers_questions(directories, tokenizer):
    loaded = qalign_jax.load(directories[0])
    assert loaded.generate(QUESTIONS, 8) == expected(tokenizer, [0], QUESTIONS)
    prompts = [render("short", question) for question in QUESTIONS]
    assert loaded.answer(QUESTIONS, 8) == expected(tokenizer, [0], prompts)
    assert loaded.generate([], 8) == []
    assert qalign_jax.load(directories[0], mesh="fsdp:4,tensor:2").answer(QUESTIONS, 8) == (
        loaded.answer(QUESTIONS, 8)
    )


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


def test_a_steering_that_is_no_number_is_refused_before_weights_are_read(directories):
    with pytest.raises(ValueError, match="alpha=nan: expected a number"):
        qalign_jax.ProxyTuned(*directories, alpha=float("nan"))
    with pytest.raises(ValueError, match="dtype='f16': expected float32 or bfloat16"):
        qalign_jax.load(directories[0], dtype="f16")


def test_a_directory_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: no model here"):
        qalign_jax.load(tmp_path)


def test_importing_the_package_imports_no_jax():
    program = "import qalign_jax, sys; print(sorted({'jax', 'orbax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'loaded'"):
        qalign_jax.loaded  # noqa: B018
