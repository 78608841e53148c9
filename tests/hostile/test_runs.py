"""Each file of a run, of another shape than it must have, is named with the place and a remedy."""

import json

import pytest

from qalign_jax.checkpoints.record import read_record
from qalign_jax.recipe.workdir import Workdir
from qalign_jax.reporting import stages
from tests.hostile.readers import make_run, read_run

NAN, INFINITE = float("nan"), float("inf")
SCORES = ("systems", "qalign", "mgsm")
LAYERS = ("representations", "systems", "base", "layers", "0")
PCA = ("representations", "systems", "base", "pca")
RESULTS, ANALYSIS = "evaluation/results.json", "analysis/results.json"
# File, the place in it, what stands there, and what the message says of it.
WRONG = [
    (RESULTS, (*SCORES, "de"), "40", r'mgsm\.de is "40"; expected a number from 0 to 100'),
    (RESULTS, (*SCORES, "de"), NAN, "NaN is no number of JSON"),
    (RESULTS, (*SCORES, "de"), 101, r"mgsm\.de is 101; expected a number from 0 to 100"),
    (RESULTS, (*SCORES, "de"), True, r"mgsm\.de is true; expected a number"),
    (RESULTS, (*SCORES, "intervals"), [1, 2], r"intervals is \[1, 2\]; expected an object"),
    (RESULTS, (*SCORES, "intervals", "de"), [1], r"intervals\.de is \[1\]; expected a list of 2"),
    (RESULTS, (*SCORES, "intervals", "de"), [1, None], r"intervals\.de\[1\] is null; expected"),
    (RESULTS, (*SCORES, "intervals"), {}, r"intervals is \{\}; expected an object with '.*average"),
    (RESULTS, (*SCORES, "sound"), 5, "sound is 5; expected an object"),
    (RESULTS, (*SCORES, "consistency"), {"language": 5}, "consistency.language is 5; expected"),
    (RESULTS, (*SCORES, "executions", "ok"), None, "executions.ok is null; expected a number"),
    (RESULTS, (*SCORES, "versus"), [], r"versus is \[\]; expected an object"),
    (
        RESULTS,
        (*SCORES, "versus", "baseline"),
        "none",
        "compared with 'none', which has no results",
    ),
    (RESULTS, (*SCORES, "versus", "average"), {"p": 1}, "expected an object with 'difference'"),
    (RESULTS, (*SCORES, "versus", "average", "p"), 2, r"p is 2; expected a number from 0 to 1"),
    (RESULTS, ("systems",), None, "systems is null; expected an object"),
    (ANALYSIS, ("reasoning", "mgsm", "base", "de", "all"), "9", 'all is "9"; expected a number'),
    (ANALYSIS, ("reasoning", "mgsm"), 3, "reasoning.mgsm is 3; expected an object"),
    (ANALYSIS, ("data_scale", "mgsm"), {}, r"data_scale\.mgsm is \{\}; expected a list"),
    (ANALYSIS, (*LAYERS, "centred"), {}, r"centred is \{\}; expected an object with 'average'"),
    (ANALYSIS, (*PCA, "points", "de"), [], "pca.points lacks a language's points"),
    (ANALYSIS, (*PCA, "points", "de"), [[1]], r"points\.de\[0\] is \[1\]; expected a list of 2"),
    (ANALYSIS, (*PCA, "explained"), 1, "explained is 1; expected a list"),
    ("config.json", ("stages",), "tuning", 'stages is "tuning"; expected a list'),
    ("config.json", ("stages",), [["tuning"]], r"stages\[0\] is \[\"tuning\"\]; expected text"),
    (
        "config.json",
        ("evaluation", "systems", "base", "model"),
        3,
        "base.model is 3; expected text",
    ),
    ("config.json", ("notes",), 3, "notes is 3; expected text or a list of texts"),
    ("tuning/done.json", ("seconds",), "5", 'seconds is "5"; expected a number'),
    ("tuning/packing.json", ("positions",), "many", 'positions is "many"; expected a number'),
]


def change(path, place, value):
    content = json.loads(path.read_text())
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("file", "place", "value", "message"), WRONG)
def test_a_value_of_another_shape_is_named_by_its_place(file, place, value, message, tmp_path):
    make_run(tmp_path)
    read_run(tmp_path)
    change(tmp_path / file, place, value)
    with pytest.raises(ValueError, match=rf"{file}: .*{message}.*; .*start the same run again"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3, "loss": "2.0"}', 'loss is "2.0"; expected a number'),
        ('{"step": "3", "loss": 2.0}', 'step is "3"; expected a whole number'),
        ('{"step": -3, "loss": 2.0}', "step is -3; expected a whole number"),
        ('{"step": 3, "loss": 1e999}', "a number too large"),
        ('{"loss": 2.0}', "expected an object with 'step'"),
        ("[3]", r"found \[3\]; expected an object"),
    ],
)
def test_a_row_of_metrics_that_cannot_be_drawn_is_named(line, message, tmp_path):
    make_run(tmp_path)
    with (tmp_path / "tuning" / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl:3: .*{message}.*; delete the line"):
        read_run(tmp_path)


def test_a_loss_that_is_not_finite_is_left_out_of_the_curve(tmp_path):
    make_run(tmp_path)
    with (tmp_path / "tuning" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": NaN, "grad_norm": Infinity}\n{"step": 4, "loss": 1.5}\n')
    tuning = next(stage for stage in stages.read(tmp_path)[1] if stage.name == "tuning")
    assert [row["step"] for row in tuning.metrics] == [1, 2, 4]


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"matters": {"lr"', "[]", "null", "3", '{"after": []}', '{"after": {"a": 1}}'],
)
def test_a_torn_done_json_is_named_with_what_to_do(content, tmp_path):
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "done.json").write_text(content)
    with pytest.raises(ValueError, match=r"done\.json: .*; delete it and start the same command"):
        Workdir(tmp_path).is_done("tuning", {})


@pytest.mark.parametrize(
    "content", ["", "{", '{"matters": {"lr"', "[]", "null", "{}", '{"matters": 3, "made_from": {}}']
)
def test_a_torn_stage_json_is_named_with_what_to_do(content, tmp_path):
    (tmp_path / "stage.json").write_text(content)
    with pytest.raises(ValueError, match=r"stage\.json: .*; delete the folder and make it again"):
        read_record(tmp_path)
