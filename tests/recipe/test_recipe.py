"""A recipe runs, resumes, skips finished stages, and refuses other settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import torch
import transformers
from ml_collections import ConfigDict

from qalign_jax.checkpoints.model import load_model
from qalign_jax.recipe import file, parts
from qalign_jax.recipe.recipe import Recipe
from qalign_jax.recipe.weights import Weights
from qalign_jax.reporting import page
from tests.faults.metadata import Metadata

STEPS = 40


def make_config(tmp, **changes):
    """A recipe of a vocabulary, a base, a tuned model and an evaluation; runs in seconds."""
    config = parts.recipe(
        "small",
        ("vocabulary", "base", "tuned", "evaluation"),
        seed=5,
        template="short",
        tokenizer="vocabulary",
        cache_dir=str(tmp / "cache"),
        mesh="fsdp:4,tensor:2",
    )

    def problems(part, count):
        return parts.source("word_problems", part=part, count=count)

    config.vocabulary = parts.tokenizer(
        500, {"documents": problems("pretraining", 400)}, symbols=("1", "2")
    )
    quick = dict(length=128, rows=8, steps=STEPS, lr=3e-3, save_every=4)
    config.base = parts.training(
        "random", {"documents": problems("pretraining", 200)}, preset="tiny", **quick
    )
    config.tuned = parts.training(
        "base", {"answers": problems("responses", 100)}, micro_batches=2, **(quick | {"rows": 16})
    )
    config.evaluation = parts.evaluation(
        systems={
            "base": parts.system("base"),
            "steered": parts.system("base", expert="tuned", antiexpert="base", trace=True),
        },
        benchmarks={
            "word_problems": parts.benchmark(
                part="test", count=3, languages=("de", "en"), max_new_tokens=8
            )
        },
        dtype="float32",
        slots=8,
        mesh="data:4,tensor:2",
    )
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def finished(tmp):
    """The workdir of a finished run and its outcome."""
    workdir = tmp / "run"
    return workdir, Recipe(make_config(tmp), workdir).run()


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_the_files_that_it_promises(finished):
    workdir, outcome = finished
    assert outcome["stages"] == dict.fromkeys(("vocabulary", "base", "tuned", "evaluation"), "done")
    assert json.loads((workdir / "config.json").read_text())["seed"] == 5
    for stage in ("base", "tuned"):
        rows = rows_of(workdir / stage / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
        assert {"learning_rate", "grad_norm", "tokens_per_second", "mfu", "packing"} <= set(rows[0])
        assert [p.name for p in (workdir / stage / "checkpoints").iterdir()] == [str(STEPS)]
        assert list((workdir / stage / "tensorboard").iterdir())
    for system in ("base", "steered"):
        for language in ("de", "en"):
            file = workdir / "evaluation" / system / "word_problems" / f"{language}.jsonl"
            header, *answers = rows_of(file)
            assert "header" in header and len(answers) == 3
            assert set(answers[0]) >= {"id", "language", "question", "prompt", "output",
                                       "prediction", "answer", "correct"}  # fmt: skip
            assert ("trace" in header["header"]["settings"]) == (system == "steered")
            for answer in answers:
                trace = answer.get("trace")
                assert (trace is not None) == (system == "steered")
                if trace:
                    assert "".join(trace["text"]) == answer["output"]
                    assert {len(column) for column in trace.values()} == {answer["tokens"]}
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    assert results["systems"] == outcome["systems"]
    scores = results["systems"]["steered"]["word_problems"]
    assert scores["average"] == pytest.approx((scores["de"] + scores["en"]) / 2, abs=0.01)
    assert scores["non_english"] == scores["de"] and "sound" in scores
    assert '<h1 dir="auto">small</h1>' in page.write(workdir).read_text()


def test_running_again_does_nothing_and_says_the_same(finished, tmp):
    workdir, outcome = finished
    files = [f for f in workdir.rglob("*") if f.is_file() and f.name != "config.json"]
    before = {f: f.stat().st_mtime_ns for f in files if f.name != "report.html"}
    assert Recipe(make_config(tmp), workdir).run() == outcome
    assert before == {f: f.stat().st_mtime_ns for f in before}


def test_a_traced_evaluation_goes_on_and_is_not_mixed_with_an_untraced_one(finished, tmp):
    workdir = tmp / "traced"
    shutil.copytree(finished[0], workdir)
    (workdir / "evaluation" / "done.json").unlink()
    file = workdir / "evaluation" / "steered" / "word_problems" / "de.jsonl"
    whole = rows_of(file)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2] + lines[3:]))
    config = make_config(tmp)
    config.evaluation.systems.steered.trace = False
    with pytest.raises(ValueError, match=r"de.jsonl .*settings.trace was true, is \(absent\)"):
        Recipe(config, workdir).run()
    Recipe(make_config(tmp), workdir).run()
    assert rows_of(file) == whole


def test_a_stage_that_was_stopped_behind_its_last_step_is_done_at_the_next_start(finished, tmp):
    workdir = tmp / "late"
    shutil.copytree(finished[0], workdir)
    (workdir / "base" / "done.json").unlink()
    before = (workdir / "base" / "metrics.jsonl").read_bytes()
    recipe = Recipe(make_config(tmp), workdir, ["base"])
    assert not recipe.is_done(recipe.stages["base"])
    assert recipe.run()["stages"]["base"] == "done"
    assert (workdir / "base" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("base/done.json", "[]"),
        ("base/done.json", ""),
        ("base/stage.json", "{}"),
        ("base/stage.json", '{"matters": [], "made_from": {}}'),
        ("evaluation/results.json", "{}"),
        ("evaluation/results.json", "null"),
    ],
)
def test_a_damaged_record_is_named_with_what_to_do(name, content, finished, tmp_path, tmp):
    workdir = tmp_path / "damaged"
    shutil.copytree(finished[0], workdir)
    (workdir / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: .*(delete|make)"):
        Recipe(make_config(tmp), workdir).run()


def test_a_stage_whose_parent_was_trained_again_is_refused(finished, tmp_path, tmp):
    workdir, config = tmp_path / "stale", make_config(tmp)
    shutil.copytree(finished[0], workdir)
    Recipe(config, workdir, ["tuned"]).run()
    for name in ("stage.json", "done.json"):  # as if base had been deleted and trained again
        record = json.loads((workdir / "base" / name).read_text())
        record["matters"]["lr"] = 1e-3
        (workdir / "base" / name).write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"tuned was made from other content.*: init was \"base .*is"
    ):
        config.base.lr = 1e-3
        Recipe(config, workdir, ["tuned"]).run()
    shutil.rmtree(workdir / "base" / "checkpoints")  # nothing to compare with
    Recipe(config, workdir, ["tuned"]).run()


def test_a_stage_whose_data_has_changed_is_not_resumed_with_it(finished, tmp_path, tmp):
    workdir = tmp_path / "changed"
    shutil.copytree(finished[0], workdir)
    record = json.loads((workdir / "tuned" / "stage.json").read_text())
    now, record["made_from"]["data"] = record["made_from"]["data"], "0123456789abcdef"
    (workdir / "tuned" / "stage.json").write_text(json.dumps(record))
    (workdir / "tuned" / "done.json").unlink()
    made = "from other content, as the fingerprints of its sources say"
    with pytest.raises(
        ValueError, match=f'tuned was made {made}: data was "0123456789abcdef", is "{now}". Take'
    ):
        Recipe(make_config(tmp), workdir, ["tuned"]).run()


def test_a_stage_that_reads_from_another_runs_again_when_that_has(finished, tmp_path, tmp):
    workdir, config = tmp_path / "again", make_config(tmp)
    shutil.copytree(finished[0], workdir)
    config.reasoning = parts.reasoning("evaluation")
    config.stages = (*config.stages, "reasoning")
    recipe = Recipe(config, workdir)
    recipe.run()
    assert recipe.is_done(recipe.stages["reasoning"])
    (workdir / "evaluation" / "done.json").unlink()
    assert recipe.is_done(recipe.stages["reasoning"])  # there is nothing new
    Recipe(config, workdir, ["evaluation"]).run()
    assert not recipe.is_done(recipe.stages["reasoning"])


def test_a_system_added_later_is_scored_beside_the_earlier_ones(finished, tmp):
    workdir, outcome = finished
    config = make_config(tmp)
    config.evaluation.systems.tuned = parts.system("tuned")
    later = Recipe(config, workdir).run()
    assert later["systems"].keys() == {"base", "steered", "tuned"}
    assert later["systems"]["base"] == outcome["systems"]["base"]


def test_several_alphas_are_a_system_each_of_models_that_are_loaded_once(
    finished, tmp, monkeypatch
):
    workdir, _ = finished
    loaded, load = [], Weights.load
    monkeypatch.setattr(
        Weights, "load", lambda self, *a, **b: loaded.append(self) or load(self, *a, **b)
    )
    config = make_config(tmp)
    steered = config.evaluation.systems.steered
    # of the same models, but not beside its like
    config.evaluation.systems.alone = parts.system("tuned")
    config.evaluation.systems.again = steered.copy_and_resolve_references()
    changes = {
        "evaluation.systems.steered.alpha": (0.0, 1.0, 2.5),
        "evaluation.baseline": "steered_alpha1.0",
    }
    results = Recipe(file.read(config, changes), workdir).run()["systems"]
    names = [f"steered_alpha{alpha}" for alpha in (0.0, 1.0, 2.5)]
    assert {"base", "steered", "alone", *names, "again"} <= set(results)  # the earlier ones stay
    assert len(loaded) == 3 + 1  # of all that are steered, and alone; base has its answers
    folder = workdir / "evaluation"

    def answers(system):
        header, *lines = rows_of(folder / system / "word_problems" / "de.jsonl")
        return header["header"]["settings"].get("alpha"), [line["output"] for line in lines]

    at = {name: answers(name) for name in (*names, "again", "steered", "base")}
    assert [at[name][0] for name in names] == [0.0, 1.0, 2.5]
    assert at["steered_alpha1.0"] == at["again"] == at["steered"]
    assert at["steered_alpha0.0"][1] == at["base"][1] != at["steered_alpha2.5"][1]
    assert results["again"]["word_problems"]["versus"]["baseline"] == "steered_alpha1.0"
    shown = page.write(workdir).read_text()
    assert "base + 2.5 · (tuned − base)" in shown


def test_a_workdir_made_with_other_settings_is_refused_by_name(finished, tmp):
    workdir, _ = finished
    config = make_config(tmp)
    config.tuned.lr = 1e-5
    with pytest.raises(ValueError, match=r"tuned was made with other settings: lr was 0\.003"):
        Recipe(config, workdir)


def test_what_only_speeds_a_run_up_may_change(finished, tmp):
    workdir, _ = finished
    config = make_config(tmp)
    config.mesh, config.tuned.remat, config.tuned.micro_batches = "fsdp:8", "full", 1
    config.base.save_every = 1
    recipe = Recipe(config, workdir)
    assert all(recipe.is_done(recipe.stages[name]) for name in ("vocabulary", "base", "tuned"))


@pytest.mark.slow
def test_a_run_with_a_notice_of_maintenance_then_killed_ends_bit_identical(finished, tmp):
    workdir, _ = finished
    recipe_file = tmp / "recipe.py"
    recipe_file.write_text(
        "import pathlib\n"
        "from tests.recipe.test_recipe import make_config\n"
        f"def get_config(): return make_config(pathlib.Path({str(tmp)!r}))\n"
    )
    stopped = tmp / "stopped"
    command = [sys.executable, "-m", "qalign_jax.run", f"--config={recipe_file}"]
    command += [f"--workdir={stopped}", "--stages=vocabulary,base"]
    metrics, saved = stopped / "base" / "metrics.jsonl", stopped / "base" / "checkpoints"

    def start(**environment):
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | environment,
        )  # fmt: skip

    def wait_for_rows(process, count):
        while not metrics.exists() or metrics.read_text().count("\n") < count:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)

    with Metadata() as server:
        process = start(GCE_METADATA_HOST=server.address)
        wait_for_rows(process, 2)
        server.notice.set()  # counts as SIGTERM
        stderr = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "maintenance-event is TERMINATE_ON_HOST_MAINTENANCE: taken as SIGTERM" in stderr
    assert set(server.asked) >= {("maintenance-event", "Google"), ("preempted", "Google")}
    (step,) = [int(child.name) for child in saved.iterdir()]
    assert 2 <= step < STEPS, "the run was over before it was stopped"

    process = start()
    wait_for_rows(process, min(step + 3, STEPS - 5))
    process.kill()
    process.communicate()
    assert not (saved / str(STEPS)).exists(), "the run was over before it was killed"
    with open(metrics, "a") as file:
        file.write('{"step": 99, "lo')  # a torn line, as a kill can leave

    process = start()
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["stages"]["base"] == "done"
    straight, again = rows_of(workdir / "base" / "metrics.jsonl"), rows_of(metrics)
    assert [row["step"] for row in again] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in again] == [row["loss"] for row in straight]
    jax.tree.map(
        np.testing.assert_array_equal,
        load_model(stopped / "base").params,
        load_model(workdir / "base").params,
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_examples(tmp):
    config = make_config(tmp)
    config.base.lr, config.base.clip = 1e38, 0.0
    workdir = tmp / "nan"
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss is"):
        Recipe(config, workdir, ["vocabulary", "base"]).run()
    report = json.loads((workdir / "base" / "nan.json").read_text())
    assert len(report["rows"]) == 8 and report["examples"][0][0].startswith("documents/")
    assert not (workdir / "base" / "checkpoints" / str(STEPS)).exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stages": ("base", "vocabulary", "tuned", "evaluation")}, "does not come before"),
        ({"stages": ("vocabulary", "base", "nothing")}, "no stage 'nothing'"),
        ({"tokenizer": "/nowhere/tokenizer.model"}, "neither a stage"),
    ],
)
def test_a_recipe_that_cannot_run_says_why_before_any_work(change, message, tmp):
    with pytest.raises(ValueError, match=message):
        Recipe(make_config(tmp, **change), tmp / "never")
    assert not (tmp / "never").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("init", "/nowhere/llama", "neither a stage"),
        ("remat", "some", "one of full"),
        ("kind", "training", "representations, tokenizer, train, or a module"),
    ],
)
def test_a_stage_that_cannot_run_says_why_before_any_work(key, value, message, tmp):
    config = make_config(tmp)
    config.base[key] = value
    with pytest.raises(ValueError, match=message):
        Recipe(config, tmp / "never")


@pytest.mark.parametrize(
    "key, value, message",
    [("rows", 6, "multiple of 4"), ("length", 4096, "more than the model's")],
)
def test_rows_and_lengths_that_do_not_fit_are_refused(key, value, message, finished, tmp):
    config = make_config(tmp, stages=("vocabulary", "base"))
    config.base[key] = value
    with pytest.raises(ValueError, match=message):
        Recipe(config, tmp / f"bad_{key}").run()


@pytest.mark.slow
def test_a_hugging_face_directory_is_trained_and_scored_with_its_own_tokenizer(tmp, model_file):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=420, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        )
    )  # fmt: skip
    directory = tmp / "hf"
    model.save_pretrained(directory)
    shutil.copy(model_file, directory / "tokenizer.model")
    config = make_config(tmp, stages=("tuned", "evaluation"), tokenizer="")
    config.tuned.init, config.tuned.length, config.tuned.steps = str(directory), 200, 2
    config.evaluation.systems = ConfigDict(
        {"base": parts.system(str(directory)), "tuned": parts.system("tuned")}
    )
    workdir = tmp / "from_hf"
    outcome = Recipe(config, workdir).run()
    assert outcome["systems"].keys() == {"base", "tuned"}
    gate = load_model(workdir / "tuned").params["layers"]["mlp"]["gate"]
    before = load_model(directory).params["layers"]["mlp"]["gate"]
    assert 0 < np.abs(gate - before).max() < 0.01


def test_a_stage_may_end_its_prompt_in_its_own_way(tmp):
    config = make_config(tmp)
    config.tuned.template = "Q: {instruction}\nEnglish:"
    recipe = Recipe(config, tmp / "own_prompt", ["vocabulary"])
    recipe.run()
    tuned = recipe.stages["tuned"]
    tokenizer = recipe.shared.weights.resolve(tuned.starts_from).tokenizer()
    text = tokenizer.decode(tuned.packed(recipe.shared, tokenizer).tokens[0].tolist())
    assert "\nEnglish:" in text and "\nA:" not in text


@pytest.mark.parametrize("name", ["nothing", "seed", "mesh"])
def test_a_choice_that_is_no_stage_is_refused(name, tmp):
    known = "the recipe's stages are vocabulary, base, tuned, evaluation"
    with pytest.raises(ValueError, match=f"no stage '{name}'; {known}"):
        Recipe(make_config(tmp), tmp / "never", [name])


def test_a_key_that_describes_no_stage_cannot_be_one(tmp):
    with pytest.raises(
        ValueError, match="no stage 'seed' is described in the recipe, only base, eval"
    ):
        Recipe(make_config(tmp, stages=("vocabulary", "seed")), tmp / "never")


def test_a_stage_whose_weights_are_not_finished_is_refused(tmp):
    with pytest.raises(ValueError, match="tuned needs base, which is not finished"):
        Recipe(make_config(tmp), tmp / "never", ["tuned"])
