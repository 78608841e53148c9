"""The recipes of the paper's scenarios: their stages for every model, and each of them run."""

import importlib
import json

import pytest

from qalign_jax.configs import slices
from qalign_jax.data import prompts
from qalign_jax.evaluation import benchmarks
from qalign_jax.models.presets import PRESETS
from qalign_jax.recipe.recipe import Recipe
from qalign_jax.recipe.stages.base import read_stages
from tests.files import QUESTIONS, write_jsonl, write_lines

TWO_STAGES = ("math_cot", "math_code", "commonsense", "nli", "data_scale")
LANGUAGES = ("de", "zh")


def get_config(name, arg):
    return importlib.import_module(f"qalign_jax.configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", TWO_STAGES)
def test_every_recipe_takes_every_model_and_its_slices(name):
    for arg in [*PRESETS, *map(",".join, slices.MESHES)]:
        config = get_config(name, arg)
        stages = read_stages(config)
        assert list(stages)[:2] == ["question_alignment", "response_alignment"]
        assert stages["response_alignment"].starts_from.name == "question_alignment"
        assert stages["question_alignment"].starts_from.preset == arg.split(",")[0]
    with pytest.raises(ValueError, match="'nothing'; behind the model stand a TPU slice and"):
        get_config(name, "tiny,nothing")


def test_baselines_are_a_word_of_the_argument():
    stages = read_stages(get_config("math_cot", "llama2_7b,v5e-16,baselines"))
    init = {name: stage.starts_from.name for name, stage in stages.items() if stage.starts_from}
    assert init == {
        "question_alignment": "random",
        "response_alignment": "question_alignment",
        "response_alignment_only": "random",
        "gsm8k_only": "random",
        "translate_training": "random",
        "multilingual_tuning": "response_alignment",
        "response_alignment_en_x": "question_alignment",
    }
    assert stages["response_alignment_en_x"].data["translations"]["reverse"]
    with pytest.raises(ValueError, match=r"'tiny,v5e-16,v5e-64' names 2 slices"):
        get_config("math_cot", "tiny,v5e-16,v5e-64")


def choice_row(number, text):
    choices = [{"label": label, "text": f"{text} {label}"} for label in "ABCDE"]
    return {
        "id": str(number),
        "question": {"stem": text, "choices": choices},
        "answerKey": "ABCDE"[number],
    }


def write_math(folder):
    for language in LANGUAGES:
        pair = folder / "pairs" / f"{language}-en"
        write_lines(pair / f"train.{language}", QUESTIONS[language])
        write_lines(pair / "train.en", QUESTIONS["en"])
    for language in (*LANGUAGES, "en"):
        lines = [f"{question}\t7" for question in QUESTIONS[language]]
        write_lines(folder / "mgsm" / f"mgsm_{language}.tsv", lines)
        rows = [{"m_query": question, "response": "7.0"} for question in QUESTIONS[language]]
        name = prompts.LANGUAGES[language]
        write_jsonl(folder / "msvamp" / f"test_{name}.json", rows)
    steps = "<llm-code>\n3 + 4\n</llm-code>\n<llm-code-output>\n7\n</llm-code-output>\n\\boxed{7}"
    published = {"expected_answer": "7", "is_correct": True, "dataset": "gsm8k"}
    solved = [
        {"query": question, "response": "3 + 4 = 7. The answer is: 7", "question": question}
        | published | {"generated_solution": steps}
        for question in QUESTIONS["en"]
    ]  # fmt: skip
    write_jsonl(folder / "train.jsonl", solved)
    responses = folder / "train.jsonl"
    return {"question_pairs": folder / "pairs", "responses": responses, "mgsm": folder / "mgsm",
            "msvamp": folder / "msvamp"}  # fmt: skip


def write_commonsense(folder):
    for language, where in (("en", "en"), ("de", "de"), ("zh", "zh")):
        rows = [choice_row(number, text) for number, text in enumerate(QUESTIONS[language])]
        write_jsonl(folder / "pairs" / where / "train.jsonl", rows)
        write_jsonl(folder / "X-CSQA" / where / "dev.jsonl", rows)
    for language in ("sw", "zh"):
        rows = [
            {"premise": "Mtu.", "choice1": "Ndio.", "choice2": "La.", "question": "cause",
             "label": number % 2, "idx": number}
            for number in range(3)
        ]  # fmt: skip
        write_jsonl(folder / "xcopa" / language / f"test.{language}.jsonl", rows)
    return {"question_pairs": folder / "pairs", "responses": folder / "pairs",
            "xcsqa": folder / "X-CSQA", "xcopa": folder / "xcopa"}  # fmt: skip


def write_nli(folder):
    labels = ("entailment", "neutral", "contradiction")
    for language in ("en", "de", "zh"):
        rows = [f"{q}\t{q}\t{label}" for q, label in zip(QUESTIONS[language], labels, strict=True)]
        write_lines(folder / "xnli" / f"test-{language}.tsv", rows)
        lines = ["premise\thypo\tlabel", *rows]
        write_lines(folder / "mt" / f"multinli.train.{language}.tsv", lines)
    return {"question_pairs": folder / "mt", "responses": folder / "mt", "xnli": folder / "xnli"}


WRITERS = {
    "math_cot": write_math, "math_code": write_math, "data_scale": write_math,
    "commonsense": write_commonsense, "nli": write_nli,
}  # fmt: skip


def make_small(config, paths, model_file, cache_dir):
    """Two steps a stage, the languages that the files have, eight new tokens."""
    config.tokenizer, config.cache_dir = str(model_file), str(cache_dir)
    config.mesh = "data:2,fsdp:2,tensor:2"
    for name, path in paths.items():
        config.paths[name] = str(path)
    for name in config.stages:
        if config[name].kind == "train":
            config[name].update({"steps": 2, "rows": 4, "length": 512})
    languages = {"xcopa": ("sw", "zh")}
    for name, options in config.evaluation.benchmarks.items():
        options.update({"languages": languages.get(name, ("de", "zh", "en")), "max_new_tokens": 8})
    config.representations.questions.languages = ("de", "zh", "en")
    config.evaluation.slots = 8


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_STAGES)
def test_each_recipe_runs_from_its_files_to_its_scores(name, tmp_path, model_file, request):
    if name == "math_code":
        request.getfixturevalue("bubblewrap")
    config = get_config(name, "tiny")
    make_small(config, WRITERS[name](tmp_path / "data"), model_file, tmp_path / "cache")
    if name == "data_scale":
        config.responses = "metamath"
    workdir = tmp_path / "run"
    outcome = Recipe(config, workdir).run()
    assert set(outcome["stages"].values()) == {"done"}
    assert {"base", "ralign", "qalign"} <= outcome["systems"].keys()
    for scores in outcome["systems"]["qalign"].values():
        assert scores["versus"]["baseline"] == "ralign"
        assert len(scores["intervals"]["average"]) == 2
        by_choice = name in ("commonsense", "nli")
        assert ("likelihood" in scores, "language" in scores["consistency"]) == (
            by_choice, not by_choice,
        )  # fmt: skip
    figures = json.loads((workdir / "representations" / "results.json").read_text())
    assert figures["representations"]["systems"].keys() == {"base", "aligned", "ralign", "qalign"}
    assert (workdir / "representations" / "space.png").stat().st_size > 1000
    if name == "data_scale":
        curve = json.loads((workdir / "data_scale" / "results.json").read_text())
        pairs = [point["pairs"] for point in curve["data_scale"]["mgsm"]]
        assert pairs == [0, 1, 1, 2, 6]  # of six: 1, 5 and 25 per cent, at least one


def test_benchmarks_are_found_by_their_files():
    assert {"mgsm", "msvamp", "word_problems", "xcopa", "xcsqa", "xnli"} <= set(benchmarks.NAMES)
    for name in benchmarks.NAMES:
        assert benchmarks.get(name).name == name
