"""The benchmarks on the real files: languages, order, limits."""

import pytest

from qalign_jax.evaluation import benchmarks


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
    with pytest.raises(ValueError, match="one of mgsm, msvamp, word_problems"):
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
