"""Curves of accuracy against question pairs."""

import pytest

from qalign_jax.analysis.data_scale import curves

RESULTS = {
    "all": {"mgsm": {"de": 50.0, "average": 52.0, "non_english": 50.0, "sound": {}}},
    "few": {"mgsm": {"de": 30.0, "average": 33.0, "non_english": 30.0}},
    "none": {"mgsm": {"de": 20.0, "average": 25.0, "non_english": 20.0}},
    "english": {"mgsm": {"en": 60.0, "average": 60.0}},
}


def test_a_curve_rises_with_the_pairs_and_not_with_the_names():
    found = curves(RESULTS, {"all": 73_000, "few": 730, "none": 0})
    assert found == {
        "mgsm": [
            {"system": "none", "pairs": 0, "average": 25.0, "non_english": 20.0},
            {"system": "few", "pairs": 730, "average": 33.0, "non_english": 30.0},
            {"system": "all", "pairs": 73_000, "average": 52.0, "non_english": 50.0},
        ]
    }


def test_a_system_without_accuracy_is_named():
    with pytest.raises(ValueError, match="no results of 'half'; there are all, few, none, english"):
        curves(RESULTS, {"half": 3, "all": 4})
    with pytest.raises(ValueError, match="english has no accuracy on mgsm in other languages"):
        curves(RESULTS, {"all": 3, "english": 4})
