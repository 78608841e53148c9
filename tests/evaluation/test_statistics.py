"""The paper's means over languages, and results.json."""

import json

import pytest

from qalign_jax.evaluation.protocols.number import judge
from qalign_jax.evaluation.records import save_results
from qalign_jax.evaluation.statistics import accuracies


def test_the_average_is_the_plain_mean_over_languages_not_over_problems():
    correct = {"de": [True] * 3, "fr": [False, True, False], "en": [True, False, False, False]}
    assert accuracies(correct, ("de", "fr", "en")) == {
        "de": 100.0,
        "fr": 33.33,
        "en": 25.0,
        "average": 52.78,
        "non_english": 66.67,
    }


def test_a_language_outside_the_average_is_averaged_only_when_alone():
    correct = {"te": [True], "en": [False]}
    assert accuracies(correct, ("de", "en")) == {"te": 100.0, "en": 0.0, "average": 0.0}
    assert accuracies({"te": [True]}, ("de",))["average"] == 100.0


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no answer to score"):
        accuracies({}, ("en",))


def test_a_number_beyond_float_is_no_prediction_and_stays_valid_json():
    judged = judge("9" * 400, "18", "en", "here")
    assert judged == {
        "prediction": None,
        "correct": False,
        "sound_prediction": None,
        "sound_correct": False,
    }
    json.dumps(judged, allow_nan=False)


def test_results_of_new_systems_join_the_saved_ones(tmp_path):
    path = tmp_path / "stage" / "results.json"
    save_results(path, {"base": {"mgsm": {"average": 1.0}}})
    save_results(path, {"base": {"msvamp": {"average": 2.0}}, "qalign": {"mgsm": {"average": 3.0}}})
    assert save_results(path, {"qalign": {"mgsm": {"average": 4.0}}}) == json.loads(
        path.read_text()
    )
    assert json.loads(path.read_text()) == {
        "systems": {
            "base": {"mgsm": {"average": 1.0}, "msvamp": {"average": 2.0}},
            "qalign": {"mgsm": {"average": 4.0}},
        }
    }
    path.write_text("[]")
    with pytest.raises(ValueError, match="is no results file"):
        save_results(path, {})
