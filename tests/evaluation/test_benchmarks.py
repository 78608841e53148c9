"""The benchmarks on the real files: languages, order, limits."""

import pytest

from qalign_jax.data.examples import load_examples
from qalign_jax.evaluation import benchmarks
from qalign_jax.evaluation.protocols import choice
from tests.files import write_jsonl, write_lines


@pytest.mark.parametrize(
    ("name", "folder", "rows", "max_new_tokens"),
    [("mgsm", "mgsm/tsv", 250, 600), ("msvamp", "msvamp", 1000, 300)],
)
def test_the_papers_benchmarks_load_ten_languages(
    real_data, tmp_path, name, folder, rows, max_new_tokens
):
    benchmark = benchmarks.get(name)
    problems = benchmark.load(tmp_path, str(real_data / folder))
    assert len(problems) == 10 * rows
    assert list(dict.fromkeys(p["language"] for p in problems)) == list(
        ("bn", "th", "sw", "ja", "zh", "de", "fr", "ru", "es", "en")
    )
    assert benchmark.max_new_tokens == max_new_tokens
    first = next(p for p in problems if p["language"] == "en")
    assert first["answer"] == ("18" if name == "mgsm" else "8.0")


def test_telugu_has_to_be_asked_for_and_a_limit_counts_per_language(real_data, tmp_path):
    mgsm = benchmarks.get("mgsm")
    problems = mgsm.load(tmp_path, str(real_data / "mgsm/tsv"), ("te", "en"), limit=3)
    assert [(p["language"], p["id"]) for p in problems] == [
        (language, str(i)) for language in ("te", "en") for i in (1, 2, 3)
    ]


def test_unknown_names_and_languages_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="one of everyday, mgsm, msvamp, word_problems, xcopa, xcsqa, xnli"
    ):
        benchmarks.get("gsm")
    with pytest.raises(ValueError, match="msvamp has no language 'te'"):
        benchmarks.get("msvamp").load(tmp_path, "", ("te",))
    with pytest.raises(ValueError, match="limit=-1"):
        benchmarks.get("mgsm").load(tmp_path, "", ("de",), limit=-1)


def test_the_generated_word_problems_load_in_six_languages(tmp_path):
    benchmark = benchmarks.get("word_problems")
    problems = benchmark.load(tmp_path, part="test", count=5, seed=0)
    assert {p["language"] for p in problems} == {"de", "en", "es", "fr", "sw", "zh"}
    assert all(p["answer"].isdigit() for p in problems)


def csqa_row(name, stem, key):
    choices = [{"label": label, "text": text} for label, text in zip("ABC", "xyx", strict=True)]
    question = {"stem": stem, "choices": choices}
    return {"id": name, "lang": "en", "question": question, "answerKey": key}


def test_xcsqa_is_parallel_by_id_whatever_the_files_order(tmp_path):
    folder = tmp_path / "xcsr" / "X-CSQA"
    for name, stem, order in (("en", "Where", (1, 2, 3)), ("jap", "どこ", (3, 1, 2))):
        rows = [csqa_row(f"id{n}", f"{stem} {n}?", "ABC"[n - 1]) for n in order]
        write_jsonl(folder / name / "dev.jsonl", rows)
    for given in (folder, folder.parent):
        problems = benchmarks.get("xcsqa").load(tmp_path, str(given), ("ja", "en"), limit=2)
        assert [(p["language"], p["id"], p["answer"]) for p in problems] == [
            ("ja", "id1", "A"),
            ("ja", "id2", "B"),
            ("en", "id1", "A"),
            ("en", "id2", "B"),
        ]
    assert problems[0]["question"] == "どこ 1?\nOptions:A. x\tB. y\tC. x\nAnswer:"
    assert problems[0]["choices"] == ["A", "B", "C"]
    assert len(benchmarks.get("xcsqa").averaged) == 16


def test_xnli_reads_the_official_test_of_all_languages(tmp_path):
    columns = ("language", "gold_label", "sentence1_parse", "sentence1", "sentence2", "pairID")
    rows = [
        (language, label, "", f"{language} one", "two", pair)
        for language in ("ar", "de", "en")
        for pair, label in (("4", "contradiction"), ("5", "entailment"))
    ]
    lines = ["\t".join(row) for row in (columns, *rows)]
    write_lines(tmp_path / "XNLI-1.0" / "xnli.test.tsv", lines)
    xnli = benchmarks.get("xnli")
    problems = xnli.load(tmp_path, str(tmp_path), ("en", "ar"))
    assert [(p["language"], p["id"], p["answer"]) for p in problems] == [
        ("en", "4", "contradiction"),
        ("en", "5", "entailment"),
        ("ar", "4", "contradiction"),
        ("ar", "5", "entailment"),
    ]
    assert problems[2]["question"] == "Premise: ar one\nHypothesis: two\nLabel:"
    assert problems[2]["choices"] == ["entailment", "neutral", "contradiction"]
    source = {"name": "xnli", "path": str(tmp_path), "languages": ("en",)}
    assert len(load_examples(source, tmp_path, xnli.builder)) == 2
    assert (len(xnli.languages), xnli.averaged) == (15, xnli.languages)


@pytest.mark.slow
def test_xnlis_real_dev_split_is_parallel_in_fifteen_languages(real_data, tmp_path):
    problems = benchmarks.get("xnli").load(tmp_path, str(real_data / "xnli"), split="dev")
    assert len(problems) == 15 * 2490
    gold = {}
    for problem in problems:
        gold.setdefault(problem["language"], []).append((problem["id"], problem["answer"]))
    assert all(answers == gold["en"] for answers in gold.values())
    assert sum("\ufeff" in problem["question"] for problem in problems) == 3


def test_xcsqas_real_sample_loads(real_data, tmp_path):
    problems = benchmarks.get("xcsqa").load(tmp_path, str(real_data / "xcsqa_sample"), ("en",))
    assert {p["id"]: p["answer"] for p in problems}["d3845adc08414fda"] == "C"
    for problem in problems:
        choice.check(problem, "here")


def test_xcopa_asks_for_the_cause_or_the_effect_in_eleven_languages_without_english(tmp_path):
    rows = [
        {
            "premise": "Ho tossito.",
            "choice1": "Avevo inalato del fumo.",
            "choice2": "Avevo abbassato la voce.",
            "question": question,
            "label": label,
            "idx": 30 + label,
            "changed": False,
        }
        for question, label in (("cause", 0), ("effect", 1))
    ]
    xcopa = benchmarks.get("xcopa")
    for language in xcopa.languages:
        write_jsonl(tmp_path / "data" / language / f"test.{language}.jsonl", rows)
    problems = xcopa.load(tmp_path, str(tmp_path / "data"))
    assert list(dict.fromkeys(p["language"] for p in problems)) == list(
        ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
    )
    assert problems[0] == {
        "id": "30",
        "language": "et",
        "question": "Ho tossito. What was the cause?\n"
        "Options:A. Avevo inalato del fumo.\tB. Avevo abbassato la voce.\nAnswer:",
        "answer": "A",
        "choices": ["A", "B"],
    }
    assert (problems[1]["id"], problems[1]["answer"]) == ("31", "B")
    assert "What happened as a result?" in problems[1]["question"]
