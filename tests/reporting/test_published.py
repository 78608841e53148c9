"""The published figures agree with each other and with what the recipes quote."""

import pytest

from qalign_jax.configs import math_cot
from qalign_jax.models.presets import PRESETS
from qalign_jax.reporting import published


def figures(benchmark):
    """Model and system -> non-English, English, mean."""
    rows = [row for row in published.ROWS if row.benchmark == benchmark]
    found = {(row.model, row.ours or row.system): row for row in rows}
    assert len(found) == len(rows)
    return {key: (row.non_english, row.english, row.average) for key, row in found.items()}


def test_the_papers_figures():
    assert figures("mgsm") == {
        ("LLaMA2-7B", "gsm8k_only"): (None, None, 22.6),
        ("LLaMA2-7B", "translate_training"): (None, None, 40.0),
        ("LLaMA2-7B", "ralign"): (35.4, 65.5, 38.4),
        ("LLaMA2-7B", "qalign"): (47.6, 68.0, 49.6),
        ("LLaMA2-7B", "response_alignment_en_x"): (None, 66.4, 41.0),
        ("LLaMA2-13B", "gsm8k_only"): (None, None, 29.7),
        ("LLaMA2-13B", "translate_training"): (None, None, 45.8),
        ("LLaMA2-13B", "ralign"): (41.2, 68.4, 43.9),
        ("LLaMA2-13B", "qalign"): (55.7, 69.2, 57.1),
        ("LLaMA2-70B", "ralign"): (47.7, 78.4, 50.8),
        ("LLaMA2-70B", "qalign"): (61.5, 76.0, 63.0),
        ("LLaMA3-8B", "ralign"): (47.3, 74.4, 50.0),
        ("LLaMA3-8B", "qalign"): (58.4, 72.0, 59.8),
        ("Mistral-7B", "ralign"): (35.2, 70.4, 38.7),
        ("Mistral-7B", "qalign"): (48.2, 70.8, 50.4),
        ("LLaMA2-7B", "MindMerger"): (None, None, 57.6),
        ("Mistral-7B", "mCoT"): (None, None, 66.2),
        ("LLaMA2-7B", "MAPO-DPO"): (41.1, None, None),
    }
    assert figures("msvamp") == {
        ("LLaMA2-7B", "gsm8k_only"): (None, None, 30.9),
        ("LLaMA2-7B", "translate_training"): (None, None, 44.1),
        ("LLaMA2-7B", "ralign"): (None, None, 46.2),
        ("LLaMA2-7B", "qalign"): (None, None, 57.2),
        ("LLaMA2-13B", "gsm8k_only"): (None, None, 38.1),
        ("LLaMA2-13B", "translate_training"): (None, None, 46.5),
        ("LLaMA2-13B", "ralign"): (None, None, 51.8),
        ("LLaMA2-13B", "qalign"): (None, None, 62.6),
        ("Mistral-7B", "mCoT"): (None, None, 57.7),
        ("LLaMA2-7B", "MAPO-DPO"): (57.3, None, None),
    }
    assert [average for *_, average in figures("xcsqa").values()] == [50.9, 61.0]
    assert [average for *_, average in figures("xnli").values()] == [70.6, 78.4]


def test_means_are_the_sums_of_their_parts():
    for row in published.ROWS:
        if row.non_english and row.english:
            mean = (9 * row.non_english + row.english) / 10
            assert row.average == pytest.approx(mean, abs=0.1), row
        if row.languages:
            assert row.average == pytest.approx(sum(row.languages.values()) / 10, abs=0.1), row
            assert row.english == row.languages["en"]
    for row in published.CONSISTENCY:
        assert row.average == pytest.approx(sum(row.languages.values()) / 10, abs=0.1), row
    assert all(row.mark in published.MARKS for row in (*published.ROWS, *published.CONSISTENCY))


def test_the_recipe_of_the_paper_quotes_the_same_means():
    for row in published.ROWS:
        if row.ours in ("ralign", "qalign") and row.average:
            assert str(row.average) in math_cot.__doc__, row


def test_the_recipes_own_model_comes_first():
    assert published.rows("mgsm")[0].model == "LLaMA2-7B"
    rows = published.rows("mgsm", ("mistral_7b",))
    assert [row.model == "Mistral-7B" for row in rows] == [True] * 3 + [False] * 15
    assert published.rows("word_problems") == []
    assert published._MODELS.keys() <= PRESETS.keys()
    assert {row.model for row in published.ROWS} == set(published._MODELS.values())
