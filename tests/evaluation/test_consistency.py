"""Shares of answers in the question's language, and of predictions equal to the English ones."""

from qalign_jax.evaluation.consistency import answer_consistency, prediction_consistency

GERMAN = "Roger hat am Anfang 5 Bälle. 5 + 6 = 11. Die Antwort ist 11."
ENGLISH = "Roger started with 5 balls. 5 + 6 = 11. The answer is 11."
FRENCH = "Roger a commencé avec 5 balles. 5 + 6 = 11. La réponse est 11."


def test_an_answer_is_consistent_in_the_questions_language_only():
    outputs = {"de": [GERMAN, ENGLISH, FRENCH], "en": [ENGLISH, ENGLISH], "fr": [FRENCH]}
    assert answer_consistency(outputs, ("de", "en")) == {
        "de": 33.33,
        "en": 100.0,
        "fr": 100.0,
        "average": 66.67,
        "non_english": 33.33,
    }


def test_an_answer_without_words_is_in_no_language():
    assert answer_consistency({"de": [GERMAN, "5 + 6 = 11", ""]}, ("de",))["de"] == 33.33


def test_a_language_that_the_identifier_does_not_know_is_logged_and_left_out(caplog):
    outputs = {"de": [GERMAN], "tlh": ["tlhIngan maH"]}
    assert answer_consistency(outputs, ("de",)).keys() == {"de", "average", "non_english"}
    assert "tlh: no share of answers" in caplog.text
    assert answer_consistency({"tlh": ["tlhIngan maH"]}, ("tlh",)) == {}
    assert answer_consistency({"de": []}, ("de",)) == {}


def test_predictions_are_compared_with_the_english_ones_of_the_same_questions():
    predictions = {
        "en": {"1": 11.0, "2": 7.0, "3": None, "4": 1.0},
        "de": {"4": 1.0, "1": 11.0004, "2": 7.5, "only de": 11.0},
        "fr": {"1": 11, "2": None, "3": None},
        "te": {"only te": 11.0},
    }
    assert prediction_consistency(predictions, ("en", "de", "fr")) == {
        "de": 66.67,
        "fr": 33.33,
        "non_english": 50.0,
    }


def test_predictions_that_are_no_numbers_are_equal_exactly():
    predictions = {
        "en": {"1": "A", "2": "B", "3": "1"},
        "zh": {"1": "A", "2": "b", "3": 1.0},
        "ja": {"1": "A", "2": "B", "3": "1"},
    }
    assert prediction_consistency(predictions, ("zh",)) == {
        "zh": 33.33,
        "ja": 100.0,
        "non_english": 33.33,
    }


def test_without_english_there_is_no_prediction_consistency():
    assert prediction_consistency({"de": {"1": 1.0}, "fr": {"1": 1.0}}, ("de", "fr")) == {}
    assert prediction_consistency({"en": {"1": 1.0}}, ("en",)) == {}
    assert prediction_consistency({"en": {"1": 1.0}, "de": {"2": 1.0}}, ("en", "de")) == {}
