"""The paper's means over languages, their intervals and comparisons, and results.json."""

import itertools
import json
import math

import numpy as np
import pytest

from qalign_jax.evaluation.protocols.number import judge
from qalign_jax.evaluation.records import save_results
from qalign_jax.evaluation.statistics import (
    accuracies,
    compare,
    holm,
    intervals,
    mcnemar_mid_p,
)

TEN = "bn de en es fr ja ru sw th zh".split()


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


def answered(right: int, questions: int) -> dict[str, bool]:
    return {f"q{index}": index < right for index in range(questions)}


def wilson(right: int, questions: int) -> list[float]:
    """Wilson's score interval in percent, by its formula."""
    z, share = 1.959963985, right / questions
    centre = share + z**2 / (2 * questions)
    spread = z * math.sqrt(share * (1 - share) / questions + z**2 / (4 * questions**2))
    bounds = ((centre + sign * spread) / (1 + z**2 / questions) for sign in (-1, 1))
    return [round(100 * bound, 2) for bound in bounds]


def test_a_languages_interval_is_wilsons():
    low, high = intervals({"de": answered(124, 250)}, TEN)["de"]
    assert (round(low, 1), round(high, 1)) == (43.5, 55.8)
    for right, questions in ((124, 250), (0, 8), (8, 8), (1, 1), (999, 1000)):
        found = intervals({"en": answered(right, questions)}, TEN)["en"]
        assert found == pytest.approx(wilson(right, questions), abs=0.011)


def test_answers_copied_across_languages_leave_the_average_as_uncertain_as_one_language():
    copied = intervals(dict.fromkeys(TEN, answered(124, 250)), TEN)
    assert copied["average"] == pytest.approx(copied["de"], abs=0.6)
    assert copied["non_english"] == copied["average"]
    # 2,500 questions of their own: narrower, as 2,500 independent answers
    apart = {
        language: {f"{language} {key}": right for key, right in answered(124, 250).items()}
        for language in TEN
    }
    low, high = intervals(apart, TEN)["average"]
    assert high - low == pytest.approx(2 * 1.96 * 50 / math.sqrt(2500), rel=0.03)
    assert copied["average"][1] - copied["average"][0] > 3 * (high - low)
    assert (low + high) / 2 == pytest.approx(49.6, abs=0.2)


def test_the_bootstraps_interval_covers_the_true_average_of_clustered_answers():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        easy = random.random(100) < 0.5  # a question is easy or hard in every language
        right = random.random((100, 4)) < np.where(easy, 0.9, 0.3)[:, None]
        table = {
            language: dict(zip(map(str, range(100)), row, strict=True))
            for language, row in zip(TEN, right.T.tolist(), strict=False)
        }
        low, high = intervals(table, TEN)["average"]
        covered += low <= 60.0 <= high
    assert 53 <= covered <= 60  # 57 expected


def test_a_languages_missing_questions_leave_the_average_at_its_own_mean():
    whole = {"de": answered(30, 100), "fr": answered(80, 100)}
    part = {"de": whole["de"], "fr": {key: whole["fr"][key] for key in list(whole["fr"])[60:]}}
    low, high = intervals(part, TEN)["average"]  # de 30 %, fr 20 of 40
    # by hand: independent of each other but for 40 questions, all wrong in de
    deviations = [
        (right - 0.3) / 100 + ((part["fr"][key] - 0.5) / 40 if key in part["fr"] else 0.0)
        for key, right in part["de"].items()
    ]
    error = 1.96 * math.sqrt(sum(deviation**2 for deviation in deviations)) / 2
    assert (low + high) / 2 == pytest.approx(40.0, abs=0.5)
    assert high - low == pytest.approx(200 * error, rel=0.05)


@pytest.mark.parametrize("right", [0, 5])
def test_without_spread_an_average_has_a_languages_interval(right):
    found = intervals({"de": answered(right, 5), "en": answered(right, 5)}, TEN)
    assert found == dict.fromkeys(("de", "en", "average", "non_english"), found["de"])
    assert found["de"] == pytest.approx(wilson(right, 5), abs=0.011)


def test_one_question_has_an_interval_and_a_comparison():
    one, other = {"de": {"1": True}, "fr": {"1": False}}, {"de": {"1": False}, "fr": {"1": False}}
    assert intervals(one, TEN)["average"] == [10.33, 89.67]
    assert compare(one, other, TEN)["average"] == {
        "difference": 50.0,
        "interval": [50.0, 50.0],
        "p": 1.0,
    }


def test_intervals_and_comparisons_are_reproducible_and_valid_json():
    random = np.random.default_rng(1)
    table = {code: {str(i): bool(random.random() < 0.6) for i in range(40)} for code in TEN}
    turned = {code: dict(reversed(row.items())) for code, row in table.items()}
    base = dict.fromkeys(TEN, answered(20, 40)) | {"te": {}}
    base = {code: {key[1:]: right for key, right in row.items()} for code, row in base.items()}
    assert intervals(table, TEN) == intervals(turned, TEN)
    assert compare(table, base, TEN) == compare(turned, base, TEN)
    saved = [intervals(table, TEN), compare(table, base, TEN)]
    assert json.loads(json.dumps(saved, allow_nan=False)) == saved


def test_intervals_have_the_names_of_the_accuracies():
    table = {"te": answered(1, 3), "en": answered(2, 3), "fr": {}}
    lists = {language: list(row.values()) for language, row in table.items()}
    assert intervals(table, ("de", "en")).keys() == accuracies(lists, ("de", "en")).keys()
    with pytest.raises(ValueError, match="no answer to score"):
        intervals({"fr": {}}, TEN)


def test_mid_p_is_the_sum_of_the_rarer_outcomes_and_half_of_the_observed_one():
    for gained, lost in itertools.product(range(9), repeat=2):
        pairs = gained + lost
        masses = [math.comb(pairs, k) / 2**pairs for k in range(pairs + 1)]
        observed = masses[gained]
        rarer = sum(mass for mass in masses if mass < observed - 1e-12)
        as_rare = sum(mass for mass in masses if abs(mass - observed) < 1e-12)
        expected = rarer + as_rare / 2 if gained != lost else 1.0  # as many gained as lost
        assert mcnemar_mid_p(gained, lost) == pytest.approx(expected)
    assert mcnemar_mid_p(1, 6) == pytest.approx(2 * (1 + 7 / 2) / 128)
    assert mcnemar_mid_p(0, 0) == 1.0


def test_holm_multiplies_by_the_hypotheses_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


def test_a_comparison_pairs_by_question_and_leaves_out_what_only_one_answered():
    ours = {
        "de": {"a": True, "b": True, "c": True, "d": False, "only ours": True},
        "en": {"a": True, "b": False},
        "sw": {"a": True},
    }
    base = {
        "en": {"b": False, "a": False},
        "de": {"d": False, "c": True, "b": False, "a": False, "only theirs": True},
        "th": {"a": True},
    }
    found = compare(ours, base, TEN)
    assert list(found) == ["de", "en", "average", "non_english"]
    assert found["de"] == pytest.approx(
        {"difference": 50.0, "p": 0.25, "p_holm": 0.5}
    )  # two gained
    assert found["en"] == pytest.approx({"difference": 50.0, "p": 0.5, "p_holm": 0.5})  # one
    assert found["average"]["difference"] == 50.0
    assert found["non_english"]["difference"] == 50.0
    assert compare({"sw": {"a": True}}, base, TEN) == {}
    assert compare({"en": {"z": True}}, base, TEN) == {}


def test_an_averages_p_is_that_of_all_exchanges_of_whole_questions():
    random = np.random.default_rng(3)
    ours = {code: {str(i): bool(random.random() < 0.7) for i in range(10)} for code in TEN[:3]}
    base = {code: {str(i): bool(random.random() < 0.4) for i in range(10)} for code in TEN[:3]}
    differences = [sum(ours[code][str(i)] - base[code][str(i)] for code in ours) for i in range(10)]
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=10)
    ]
    exact = sum(value >= abs(sum(differences)) for value in sums) / len(sums)
    assert 0.01 < exact < 0.5
    found = compare(ours, base, TEN)["average"]
    assert found["p"] == pytest.approx(exact, abs=0.015)
    assert found["difference"] == pytest.approx(100 * sum(differences) / 30, abs=0.01)
    low, high = found["interval"]
    assert low < found["difference"] < high


def test_a_gain_copied_across_languages_is_no_stronger_evidence_than_in_one():
    base, ours = answered(100, 250), answered(112, 250)  # 12 questions gained, none lost
    once = compare({"de": ours}, {"de": base}, TEN)
    copied = compare(dict.fromkeys(TEN, ours), dict.fromkeys(TEN, base), TEN)
    assert copied["average"] == once["average"]
    assert once["average"]["p"] == pytest.approx(2 / 2**12, abs=4e-4)
    assert once["de"]["p"] == pytest.approx(1 / 2**12)
    assert copied["de"]["p_holm"] == pytest.approx(10 / 2**12)
    assert once["average"]["interval"] == pytest.approx([2.4, 7.6], abs=0.41)


def test_equal_systems_do_not_differ():
    table = {"de": answered(3, 8), "fr": answered(8, 8)}
    same = {"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0}
    assert compare(table, table, TEN) == {
        "de": {"difference": 0.0, "p": 1.0, "p_holm": 1.0},
        "fr": {"difference": 0.0, "p": 1.0, "p_holm": 1.0},
        "average": same,
        "non_english": same,
    }


def test_a_number_beyond_float_is_no_prediction_and_stays_valid_json():
    judged = judge({"output": "9" * 400, "answer": "18", "language": "en"}, "here")
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
