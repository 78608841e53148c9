"""Numbers of solutions, and how far solutions agree, by hand."""

import pytest

from qalign_jax.analysis.reasoning import agreement, compare, numbers, read_answers
from tests.files import write_jsonl, write_lines


@pytest.mark.parametrize(
    ("solution", "language", "expected"),
    [
        ("Tom has 10 + 4 = 14. He loses 5, so 14 - 5 = 9. The answer is 9.", "en", {14: 1, 9: 1}),
        ("2 + 2 = 4 and 2 * 2 = 4", "en", {4: 2}),
        ("x = 3 + 4 = 7", "en", {7: 1}),  # 3 is not the result of a step
        ("12 x 5 = 60 x 2 = 120", "en", {120: 1}),
        ("3 + 4 = <<3+4=7>>7 pens", "en", {7: 1}),  # as GSM8K writes it
        ("She pays 2 * 617.25 = $1,234.50.", "de", {1234.5: 1}),
        ("Es sind 7 / 2 = 3,5 Meter.", "de", {3.5: 1}),
        ("3 - 8 = -5", "en", {-5: 1}),
        ("1 / 4 = 2/8", "en", {0.25: 1}),
        ("১০ + ৪ = ১৪", "bn", {14: 1}),
        ("５＋５＝１０。", "ja", {10: 1}),
        ("= 14\n- 5 pens", "en", {14: 1}),
        ("He has 3 cats and 4 dogs, together 7.", "en", {3: 1, 4: 1, 7: 1}),  # no equation
        ("None at all.", "en", {}),
    ],
)
def test_the_numbers_of_a_solution_are_the_results_of_its_steps(solution, language, expected):
    assert numbers(solution, language) == expected


def test_agreement_counts_what_both_have_over_what_either_has():
    assert agreement({14: 1, 9: 1}, {14: 1, 9: 1}) == 1
    assert agreement({14: 1, 9: 1}, {14: 1, 8: 1}) == pytest.approx(1 / 3)
    assert agreement({4: 2}, {4: 1}) == 0.5
    assert agreement({4: 2}, {}) == 0


def answers(*rows):
    return {
        str(number): {"id": str(number), "output": output, "correct": correct}
        for number, (output, correct) in enumerate(rows)
    }


ENGLISH = answers(
    ("1 + 1 = 2. 2 + 3 = 5", True), ("4 + 4 = 8", True), ("2 * 5 = 10", False), ("None.", True)
)


def test_solutions_are_compared_with_english_ones_of_the_same_question():
    german = answers(
        ("1 + 1 = 2. 2 + 4 = 6", True), ("4 + 4 = 8", True), ("2 * 5 = 10", True), ("Keine.", True)
    )
    assert compare({"de": german, "en": ENGLISH})["de"] == {
        "all": 77.78,  # 1/3, 1, 1; without the last, which has no number in either language
        "both_right": 66.67,
        "not_both_right": 100,
        "by_chance": 0,
        "solutions": 3,
        "both_right_solutions": 2,
    }


def test_agreement_by_chance_is_that_with_the_next_question():
    german = answers(("4 + 4 = 8", False), ("5 * 2 = 10", False))
    found = compare({"en": ENGLISH, "de": german})["de"]
    assert (found["all"], found["by_chance"], found["both_right"]) == (0, 50, None)


def test_answers_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"expected answers in English .* found de"):
        compare({"de": ENGLISH})
    with pytest.raises(ValueError, match=r"at least one other language, found en"):
        compare({"en": ENGLISH})
    with pytest.raises(ValueError, match="1 answers in de have an English one; expected two"):
        compare({"en": ENGLISH, "de": answers(("1", True))})


def test_answers_are_read_from_the_files_of_an_evaluation(tmp_path):
    german = list(ENGLISH.values())
    write_jsonl(tmp_path / "de.jsonl", [{"header": {"language": "de"}}, *german])
    write_jsonl(tmp_path / "en.jsonl", [{"header": {"language": "en"}}])
    assert read_answers(tmp_path) == {"de": ENGLISH, "en": {}}
    write_lines(tmp_path / "fr.jsonl", ['{"header": {}}', '{"id": "0", "out'])
    with pytest.raises(ValueError, match=r"fr.jsonl:2: not JSON .* start the evaluation again"):
        read_answers(tmp_path)
