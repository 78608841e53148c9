"""Names and paths from data and config stay inside the folders that they belong to."""

import json
import os
import pathlib

import numpy as np
import pytest

from qalign_jax import files
from qalign_jax.checkpoints.safetensors import TensorFiles
from qalign_jax.data.tokenizer import load_tokenizer
from qalign_jax.evaluation import benchmarks, runner
from qalign_jax.generate import Request, generate
from qalign_jax.recipe import file as recipe_file
from qalign_jax.recipe import recipe
from qalign_jax.recipe.stages.base import make_run, read_stages
from qalign_jax.recipe.stages.evaluate import Evaluate
from qalign_jax.reporting import compare
from tests.hostile.readers import (
    PROBLEMS,
    Generator,
    make_answers,
    make_hugging_face,
)
from tests.hostile.readers import (
    make_run as write_run,
)

# By what they try.
NAMES = {
    "nothing": "",
    "the folder": ".",
    "above": "..",
    "above and away": "../../escaped",
    "below": "a/b",
    "a root": "/tmp/escaped",
    "another system's separator": "..\\escaped",
    "a home": "~root",
    "hidden": ".ssh",
    "NUL": "a\0b",
    "a line break": "a\nb",
    "a last line break": "a\n",
    "a tab": "a\tb",
    "a space": "a b",
    "300 characters": "a" * 300,
    "300 bytes": "字" * 100,
    "right to left": "a\u202egpj.exe",
    "an invisible": "a\u200bb",
    "a dot that is none": "\u2024\u2024",
    "full-width dots": "\uff0e\uff0e",
    "full-width letters": "\uff42\uff41\uff53\uff45",
    "a slash that is none": "a\u2215b",
    "half a pair": "a\ud800",
    "markup": "<b>",
    "a variable": "$HOME",
}


@pytest.fixture
def place(tmp_path):
    """A folder to work in, of which the one above must stay as it is."""
    inner = tmp_path / "inner"
    inner.mkdir()
    before = sorted(tmp_path.iterdir())
    yield inner
    assert sorted(tmp_path.iterdir()) == before
    assert not pathlib.Path("/tmp/escaped").exists()


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_is_none_of_a_file_is_told_from_one_that_is(case):
    assert not files.is_name(NAMES[case])


@pytest.mark.parametrize("name", ["base", "llama2-7b_v1.0", "q", "-x", "基础", "größer", "a" * 200])
def test_names_in_any_script_are_names(name, tmp_path):
    assert files.is_name(name)
    (tmp_path / f".{name}.jsonl.123456").touch()  # with what is put around it


@pytest.mark.parametrize("value", [None, 3, ["a"], True])
def test_what_is_no_text_is_no_name(value):
    assert not files.is_name(value)


def demo():
    return recipe_file.read("configs/demo.py", {})


@pytest.mark.parametrize("case", [*NAMES, "a root as a stage"])
def test_a_stage_of_such_a_name_is_refused_before_anything_is_written(case, place):
    name = NAMES.get(case, str(place / "stage"))
    config = demo()
    config.stages = (name,)
    with pytest.raises(ValueError, match="a stage cannot be named"):
        recipe.run(config, place / "run")
    assert not list(place.iterdir())


@pytest.mark.parametrize("case", [*NAMES, "a root as a system"])
def test_a_system_of_such_a_name_is_refused_before_anything_is_written(case, place):
    name = NAMES.get(case, str(place / "system"))
    config = demo().to_dict()
    config["evaluation"]["systems"][name] = config["evaluation"]["systems"]["base"]
    with pytest.raises(ValueError, match="a system cannot be named"):
        Evaluate.from_recipe("evaluation", config)
    with pytest.raises(ValueError, match="a system cannot be named"):
        runner.evaluate(name, benchmarks.get("mgsm"), PROBLEMS, Generator(), "short", place, {})
    assert not list(place.iterdir())


@pytest.mark.parametrize("case", NAMES)
def test_a_problem_in_a_language_of_such_a_name_is_refused_and_writes_nothing(case, place):
    problems = [{**PROBLEMS[0], "language": NAMES[case]}]
    with pytest.raises(ValueError, match="mgsm has no language"):
        runner.evaluate("qalign", benchmarks.get("mgsm"), problems, Generator(), "short", place, {})
    assert not list(place.iterdir())


@pytest.mark.parametrize("case", sorted(set(NAMES) - {"nothing"}))
def test_a_recipe_of_such_a_name_names_no_folder(case, place, monkeypatch):
    monkeypatch.chdir(place)
    config = demo()
    config.name = NAMES[case]
    with pytest.raises(ValueError, match=r"is no folder's name; give the run's folder"):
        recipe.run(config)
    assert not list(place.iterdir())


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "a\0b"])
def test_a_benchmarks_name_in_results_draws_no_picture_elsewhere(name, place):
    evaluation = place / "evaluation"
    evaluation.mkdir()
    make_answers(evaluation)
    results = {"qalign": {name: {"en": 1.0}}}
    (evaluation / "results.json").write_text(json.dumps({"systems": results}))
    config = demo().unlock()
    config.stages = ("reasoning",)
    config.reasoning.evaluation = str(evaluation)
    stages = read_stages(config)
    workdir = place / "run"
    with pytest.raises(ValueError, match=r"results\.json: .* is no name of a system or benchmark"):
        stages["reasoning"].run(make_run(config, stages, workdir))
    assert not workdir.exists()


@pytest.mark.parametrize("name", ["..", "../model.safetensors", "/dev/zero", "a\0b", "", 3, None])
def test_an_index_names_files_of_its_own_directory_alone(name, tmp_path):
    make_hugging_face(tmp_path, shard_bytes=4000)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"index\.json: no index of safetensors files"):
        TensorFiles(tmp_path)


def test_a_directory_of_links_as_the_hubs_cache_has_it_is_read(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    make_hugging_face(blobs)
    for number, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / f"{number}")
        (snapshot / path.name).symlink_to(os.path.join("..", "..", "blobs", f"{number}"))
    tensors = TensorFiles(snapshot)
    assert all(np.isfinite(tensors.read(name)).all() for name in tensors.entries)
    assert load_tokenizer(snapshot).vocab_size == 310


# Where no file can be written, by what is wrong.
OUTPUTS = {
    "below a file": ("there/out.jsonl", "there is not a folder"),
    "far below a file": ("there/a/b/out.jsonl", "there is not a folder"),
    "a folder": ("folder", "is a folder"),
    "a last slash": ("new/", "no file's name"),
    "NUL": ("a\0b", "no file's name"),
    "300 characters": ("a" * 300, "too long"),
}


@pytest.mark.parametrize("flag", ["output", "trace"])
@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused_before_a_model_is_read(case, flag, place):
    path, message = OUTPUTS[case]
    (place / "there").write_text("")
    (place / "folder").mkdir()
    (place / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    paths = {"output": place / "out.jsonl", flag: f"{place}/{path}"}
    with pytest.raises(ValueError, match=f"--{flag}=.*{message}"):
        generate(Request("no model"), place / "prompts.jsonl", **paths)
    assert len(list(place.iterdir())) == 3


@pytest.mark.parametrize("case", OUTPUTS)
def test_a_comparison_that_cannot_be_written_is_refused(case, place):
    path, message = OUTPUTS[case]
    (place / "there").write_text("")
    (place / "folder").mkdir()
    with pytest.raises(ValueError, match=f"--output=.*{message}"):
        compare.write(["one", "two"], f"{place}/{path}")


def test_an_empty_name_among_the_runs_to_compare_is_not_this_folder(place, monkeypatch):
    write_run(place)
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match="--compare=a,,b has an empty name"):
        compare.write(["a", "", "b"], "comparison.html")
