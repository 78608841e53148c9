"""The analyses as stages of a recipe, on models and answers in a workdir."""

import json

import jax
import pytest
from matplotlib import image

from qalign_jax.ahead.jobs import DecodingJob, Workload, check_jobs
from qalign_jax.checkpoints.model import Model, save_model
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.models.params import init_params
from qalign_jax.models.presets import preset
from qalign_jax.recipe import parts
from qalign_jax.recipe.recipe import Recipe
from qalign_jax.recipe.stages.base import make_run, read_stages
from tests.files import write_jsonl


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer):
    config, execution = preset("tiny", vocab_size=420)
    params = init_params(config, jax.random.key(0))
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, Model(config, execution, params, tokenizer, "short"))
    write_record(folder, Record({}, {"source": "test"}))
    return str(folder)


def compared(model_folder, tmp_path, **changes):
    config = parts.recipe(
        "compared", ("compared",), mesh="data:4,tensor:2", cache_dir=str(tmp_path / "cache")
    )
    questions = parts.benchmark(part="test", count=4, languages=("de", "en"))
    config.compared = parts.representations(
        {"model": model_folder}, "word_problems", questions, dtype="float32", batch_size=8
    )
    with config.compared.unlocked():
        config.compared.update(changes)
    return config


def png_size(path):
    height, width, _ = image.imread(path).shape
    return width, height


def test_representations_leave_figures_by_layer_a_projection_and_two_pictures(
    model_folder, tmp_path
):
    config = compared(model_folder, tmp_path, layers=(0, -1), pca_layer=1)
    outcome = Recipe(config, tmp_path / "run").run()
    assert outcome["stages"] == {"compared": "done"} and outcome["systems"] == {}
    folder = tmp_path / "run" / "compared"
    results = json.loads((folder / "results.json").read_text())["representations"]
    assert (results["questions"], results["retrieval_by_chance"]) == (4, 25.0)
    found = results["systems"]["model"]
    assert list(found["layers"]) == ["0", "2"]
    for figures in found["layers"].values():
        cosines = figures["raw"]["de"]
        assert cosines["nearer"] == pytest.approx(
            cosines["translations"] - cosines["others"], abs=1e-3
        )
        assert 0 < figures["between_languages"] < 1
    assert found["pca"]["layer"] == 1
    assert [len(points) for points in found["pca"]["points"].values()] == [4, 4]
    assert png_size(folder / "layers.png") == (1560, 520)
    assert png_size(folder / "space.png")[0] > 500
    (folder / "results.json").write_text('{"representations": {}}')
    Recipe(config, tmp_path / "run").run()  # finished before, skipped
    assert json.loads((folder / "results.json").read_text()) == {"representations": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": {}}, "compared.systems: no systems to compare"),
        (
            {"systems": {"model": "nowhere"}},
            "compared.systems.model='nowhere' is neither a stage",
        ),
        ({"benchmark": "mgms"}, "compared.benchmark: unknown benchmark 'mgms'; it is one of"),
        ({"dtype": "int8"}, "compared.dtype='int8'; it is float32 or bfloat16"),
        ({"batch_size": 0}, "compared.batch_size=0; expected at least 1"),
        ({"layers": (3,)}, "compared, model: the model has no layer 3; it has 0"),
        ({"pca_layer": -4}, "compared, model: the model has no layer -4; it has 0"),
        ({"questions": {"languages": ("de", "fr")}}, "word_problems: expected parallel .* de fr"),
        ({"questions": {"count": 1}}, "compared, word_problems: 1 questions have the same id"),
    ],
)
def test_representations_that_cannot_be_compared_are_refused_before_any_device_works(
    changes, message, model_folder, tmp_path
):
    config = compared(model_folder, tmp_path)
    with config.unlocked():
        for key, value in changes.items():
            if key == "questions":
                config.compared.questions.update(value)
            else:
                config.compared[key] = value
    with pytest.raises(ValueError, match=message):
        Recipe(config, tmp_path / "run").prepare()


def test_a_model_with_fewer_rows_than_the_tokenizer_has_pieces_is_refused(tokenizer, tmp_path):
    config, execution = preset("tiny", vocab_size=300)
    params = init_params(config, jax.random.key(0))
    save_model(tmp_path / "few", Model(config, execution, params, tokenizer, "short"))
    config = compared(str(tmp_path / "few"), tmp_path)
    with pytest.raises(ValueError, match=r"compared\.systems\.model: the tokenizer has 420 pieces"):
        Recipe(config, tmp_path / "run")


def test_a_mesh_that_does_not_divide_a_model_is_found_before_the_run(model_folder, tmp_path):
    config = compared(model_folder, tmp_path, mesh="tensor:8")
    stages = read_stages(config)
    jobs = stages["compared"].jobs(make_run(config, stages, ""), Workload())
    assert isinstance(jobs["model"], DecodingJob) and jobs["model"].slots == 8
    with pytest.raises(ValueError, match="compared: 2 key-value heads cannot be split over tens"):
        check_jobs("compared", jobs, jax.devices())


RIGHT = {"output": "1 + 1 = 2. 2 + 3 = 5", "correct": True}
WRONG = {"output": "1 + 1 = 2. 2 + 4 = 6", "correct": False}


@pytest.fixture
def evaluation(tmp_path):
    """The folder of an evaluation: two systems' answers, and scores without answers."""
    folder = tmp_path / "evaluation"
    for system, german in (("tuned", RIGHT), ("base", WRONG)):
        for language, answer in (("en", RIGHT), ("de", german)):
            rows = [{"id": str(number), **answer} for number in range(3)]
            write_jsonl(folder / system / "mgsm" / f"{language}.jsonl", [{"header": {}}, *rows])
    scores = {"base": 10.0, "tuned": 40.0, "numbers_only": 5.0}
    systems = {
        name: {"mgsm": {"average": score + 5, "non_english": score}}
        for name, score in scores.items()
    }
    (folder / "results.json").write_text(json.dumps({"systems": systems}))
    return folder


def run(tmp_path, stage):
    config = parts.recipe("read", ("read",))
    config.read = stage
    assert Recipe(config, tmp_path / "run").run()["stages"] == {"read": "done"}
    folder = tmp_path / "run" / "read"
    return json.loads((folder / "results.json").read_text()), folder


def test_reasoning_compares_the_systems_that_answered(evaluation, tmp_path):
    results, folder = run(tmp_path, parts.reasoning(str(evaluation)))
    agreement = results["reasoning"]["mgsm"]
    assert list(agreement) == ["base", "tuned"]
    assert agreement["base"]["de"]["all"] == 33.33 and agreement["tuned"]["de"]["all"] == 100
    assert png_size(folder / "mgsm.png") == (780, 520)
    results, _ = run(tmp_path, parts.reasoning(str(evaluation), systems=("tuned",)))
    assert list(results["reasoning"]["mgsm"]) == ["tuned"]


def test_reasoning_needs_systems_with_answers_and_leaves_out_what_has_no_english(
    evaluation, tmp_path, caplog
):
    with pytest.raises(ValueError, match="no answers of 'numbers_only'; its systems are base, tun"):
        run(tmp_path, parts.reasoning(str(evaluation), systems=("numbers_only",)))
    (evaluation / "base" / "mgsm" / "en.jsonl").unlink()
    results, _ = run(tmp_path, parts.reasoning(str(evaluation)))
    assert list(results["reasoning"]["mgsm"]) == ["tuned"]
    assert "read, base, mgsm: left out, expected answers in English" in caplog.text


def test_data_scale_counts_pairs_by_number_or_by_training_stage(evaluation, tmp_path):
    stage = tmp_path / "aligned"
    stage.mkdir()
    (stage / "packing.json").write_text('{"examples": 73000}')
    pairs = {"base": 730, "tuned": str(stage), "numbers_only": 0}
    results, folder = run(tmp_path, parts.data_scale(str(evaluation), pairs))
    found = [(p["pairs"], p["non_english"], p["average"]) for p in results["data_scale"]["mgsm"]]
    assert found == [(0, 5.0, 10.0), (730, 10.0, 15.0), (73_000, 40.0, 45.0)]
    assert png_size(folder / "curve.png") == (780, 520)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({}, "read.systems: no systems to compare"),
        ({"base": -1}, "read.systems.base=-1; expected from 0"),
        ({"base": 0}, "read.systems: none of the systems was trained on pairs"),
        ({"best": 3}, "read: no results of 'best'; there are base, tuned, numbers_only"),
        ({"base": "/"}, "packing.json is missing; / has trained on no examples"),
    ],
)
def test_data_scale_that_makes_no_sense_is_refused(pairs, message, evaluation, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, parts.data_scale(str(evaluation), pairs))


def test_a_stage_that_reads_an_evaluation_comes_after_it(tmp_path):
    config = parts.recipe("order", ("read", "scored"), tokenizer=str(tmp_path))
    config.read = parts.reasoning("scored")
    config.scored = parts.evaluation({"tiny": parts.system("random", preset="tiny")}, {
        "mgsm": parts.benchmark()
    })  # fmt: skip
    with pytest.raises(ValueError, match="read needs scored, which does not come before it"):
        read_stages(config)
    config.stages = ("scored", "read")
    assert list(read_stages(config)) == ["scored", "read"]


def test_a_folder_that_is_no_evaluation_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"read: .*results.json is missing; name an evaluation"):
        run(tmp_path, parts.reasoning(str(tmp_path)))
    (tmp_path / "results.json").write_text('{"reasoning": {}}')
    with pytest.raises(ValueError, match=r"read: .*results.json has no systems; name an eval"):
        run(tmp_path, parts.data_scale(str(tmp_path), {"base": 1}))
