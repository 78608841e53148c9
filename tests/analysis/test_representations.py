"""Representations of parallel questions against transformers, and their figures by hand."""

import jax
import numpy as np
import pytest
import torch
import transformers

from qalign_jax.analysis import representations as analysis
from qalign_jax.checkpoints.model import Model, load_model
from qalign_jax.models.params import random_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from tests.files import QUESTIONS
from tests.pretrained import write_pretrained

PROBLEMS = [
    {"id": str(number), "language": language, "question": question}
    for language, questions in QUESTIONS.items()
    for number, question in enumerate(questions)
]


def test_questions_that_a_language_lacks_are_left_out_and_english_comes_first():
    german_first = sorted(PROBLEMS, key=lambda problem: problem["language"])
    without = [p for p in german_first if (p["language"], p["id"]) != ("zh", "1")]
    found = analysis.parallel_questions(without)
    assert list(found) == ["en", "de", "zh"]
    assert found == {language: [q[0], q[2]] for language, q in QUESTIONS.items()}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda p: p["language"] != "en", "expected parallel questions in English .* found de zh"),
        (lambda p: p["language"] == "en", "at least one other language, found en"),
        (lambda p: False, "found none"),
        (lambda p: p["id"] == "0" or p["language"] == "en", "1 questions have the same id in all"),
    ],
)
def test_questions_that_cannot_be_compared_are_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        analysis.parallel_questions([problem for problem in PROBLEMS if kept(problem)])


def test_layers_are_counted_from_both_ends():
    config = preset("tiny")[0]
    last = config.n_layers
    assert analysis.chosen_layers(config, ()) == list(range(last + 1))
    assert analysis.chosen_layers(config, (-1, 0)) == [last, 0]
    with pytest.raises(ValueError, match=f"no layer {last + 1}; it has 0 .* to {last}"):
        analysis.chosen_layers(config, (0, last + 1))
    with pytest.raises(ValueError, match="names a layer of the model twice"):
        analysis.chosen_layers(config, (last, -1))


def test_a_question_longer_than_the_model_reads_is_refused(tokenizer):
    questions = {"en": ["1 + 1"], "de": ["1 + 1", "1 + 2 + 3"]}
    longest = len(tokenizer.encode("1 + 2 + 3")) + 1
    assert analysis.encode(questions, tokenizer, longest)["en"][0][0] == tokenizer.bos_id
    with pytest.raises(ValueError, match=f"question in de has {longest} tokens, the model reads"):
        analysis.encode(questions, tokenizer, longest - 1)


def test_states_of_the_real_260k_model_are_those_of_transformers(real_data, tmp_path):
    write_pretrained(real_data / "tinyllama_260k", tmp_path)
    mesh = make_mesh("", jax.devices()[:1])
    model = load_model(tmp_path, mesh=mesh, dtype="float32")
    encoded = analysis.encode(QUESTIONS, model.tokenizer, model.config.max_length)
    states = analysis.representations(model, encoded, mesh=mesh, batch_size=2)
    reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype="float32").eval()
    for language, rows in encoded.items():
        for number, ids in enumerate(rows):
            with torch.no_grad():
                found = reference(input_ids=torch.tensor([ids]), output_hidden_states=True)
            expected = np.stack([layer[0].mean(axis=0) for layer in found.hidden_states])
            np.testing.assert_allclose(states[language][:, number], expected, atol=1e-4)


@pytest.fixture(scope="module")
def of_mesh(tokenizer):
    """Computes the states of a tiny model on a mesh; keywords as of `representations`."""
    config, execution = preset("tiny", vocab_size=tokenizer.vocab_size, init_scale=0.1)
    encoded = analysis.encode(QUESTIONS, tokenizer, config.max_length)

    def compute(spec, **options):
        mesh = make_mesh(spec)
        params = random_params(config, mesh, 3)
        model = Model(config, execution, params, tokenizer, "paper")
        return analysis.representations(model, encoded, mesh=mesh, **options)

    return compute


@pytest.mark.parametrize(
    ("spec", "batch_size"),
    [("single", 1), ("single", 4), ("data:4,tensor:2", 3), ("data:2,fsdp:2,tensor:2", 64)],
)
def test_states_and_figures_are_the_same_on_every_mesh_and_in_every_batch(
    spec, batch_size, of_mesh
):
    expected = of_mesh("single", batch_size=64)
    states = of_mesh(spec, batch_size=batch_size)
    assert states["en"].shape == (3, 3, 64) and states["en"].dtype == np.float32
    for language, each in states.items():
        np.testing.assert_allclose(each, expected[language], atol=1e-5)
    figures, wanted = (
        analysis.compare({language: each[1] for language, each in found.items()})
        for found in (states, expected)
    )
    for language in ("de", "zh", "average"):
        assert figures["raw"][language] == pytest.approx(wanted["raw"][language], abs=2e-4)


def test_only_the_chosen_layers_are_kept(of_mesh):
    every, some = of_mesh("single"), of_mesh("single", layers=(2, 0))
    np.testing.assert_array_equal(some["zh"], every["zh"][[2, 0]])


def test_figures_of_states_made_by_hand():
    english = np.eye(4)
    swapped = english[[1, 0, 2, 3]] * 3  # two of four translations lie on another question
    found = analysis.compare({"en": english, "de": 2 * english, "fr": swapped})
    perfect = {"translations": 1, "others": 0, "nearer": 1, "to_english": 100, "from_english": 100}
    assert found["raw"]["de"] == perfect
    assert found["raw"]["fr"] == {
        "translations": 0.5, "others": 0.1667, "nearer": 0.3333,
        "to_english": 50, "from_english": 50,
    }  # fmt: skip
    assert found["raw"]["average"]["nearer"] == 0.6667


def test_both_ways_of_retrieval_are_told_apart():
    english = np.array([[1.0, 0], [0, 1]])
    german = np.array([[1.0, 0], [2, 1]])  # both next to the first English question
    found = analysis.compare({"en": english, "de": german})["raw"]["de"]
    assert (found["to_english"], found["from_english"]) == (50, 100)


def test_what_all_questions_share_hides_in_raw_figures_and_not_in_centred_ones():
    random = np.random.default_rng(0)
    english = random.normal(size=(40, 8))
    states = {"en": english, "de": english + 0.1 * random.normal(size=(40, 8))}
    far = analysis.compare({language: each + 100 for language, each in states.items()})
    here = analysis.compare(states)
    assert far["raw"]["de"]["nearer"] < 0.01
    assert far["centred"] == here["centred"] and here["centred"]["de"]["nearer"] > 0.9


@pytest.mark.parametrize(("apart", "share"), [(0, 0), (1, 0.5), (7, 0.98)])
def test_the_share_of_the_variance_between_languages_by_hand(apart, share):
    around = np.array([[1.0, 0], [-1, 0]])
    shift = np.array([0, apart])
    states = {"en": around + shift, "de": around - shift}
    assert analysis.compare(states)["between_languages"] == share


def test_two_components_keep_the_geometry_of_data_in_a_plane():
    random = np.random.default_rng(0)
    plane = random.normal(size=(12, 2)) * [5, 1]
    axes = np.linalg.qr(random.normal(size=(7, 2)))[0].T
    states = np.split(plane @ axes + 3, 2)
    found = analysis.project(dict(zip(("en", "de"), states, strict=True)))
    points = np.array([*found["points"]["en"], *found["points"]["de"]])

    def distances(rows):
        return np.linalg.norm(rows[:, None] - rows, axis=-1)

    np.testing.assert_allclose(distances(points), distances(plane), atol=1e-3)
    spread = np.linalg.eigvalsh(np.cov(plane.T))[::-1]
    assert found["explained"] == pytest.approx(spread / spread.sum(), abs=1e-4)


def test_a_components_largest_weight_is_positive():
    line = np.arange(4.0)[:, None]
    for weights in ([3, -1, 0], [-1, 3, 0]):
        found = analysis.project({"en": line * weights, "de": line * weights})
        first = [x for x, _ in found["points"]["en"]]
        assert first == sorted(first)
    found = analysis.project({"en": -line * [3, -1, 0], "de": -line * [3, -1, 0]})
    first = [x for x, _ in found["points"]["en"]]
    assert first == sorted(first, reverse=True)
