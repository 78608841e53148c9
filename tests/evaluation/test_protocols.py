"""Programs and answers of solutions with code; choices, generated and by likelihood."""

import json

import pytest

from qalign_jax.evaluation.protocols import choice, code

OPENMATH = (
    "Let us count.\n<llm-code>\nx = 3\n</llm-code>\n<llm-code-output>\n3\n</llm-code-output>\n"
    "Then\n<llm-code>\nx + 4\n</llm-code>"
)


@pytest.mark.parametrize(
    ("text", "blocks", "call", "finished"),
    [
        (OPENMATH, ["x = 3", "x + 4"], "", True),
        (OPENMATH + "\n<llm-code>\nx =", ["x = 3", "x + 4", "x ="], "", False),
        ("So\n```python\nprint(2)\n```\n```output\n2\n```\nIt is 2.", ["print(2)"], "", True),
        ("So\n```python\nprint(2)", ["print(2)"], "", False),
        ("```\nprint(2)\n```", ["print(2)"], "", True),
        (
            "Well.\nimport math\n\ndef solution():\n    x = 1\n\n    return x\nSo it is 1.",
            ["import math\n\ndef solution():\n    x = 1\n\n    return x"],
            "solution",
            True,
        ),
        (
            "```python\ndef solution():\n    return 2\n```",
            ["def solution():\n    return 2"],
            "solution",
            True,
        ),
    ],
)
def test_programs_are_found_in_every_form(text, blocks, call, finished):
    found = code.programs(text)
    assert (found.blocks, found.call, found.finished) == (blocks, call, finished)


def test_a_text_without_code_has_no_program():
    assert code.programs("The answer is 5. I will define solution() later.") is None


def test_every_published_program_and_answer_is_read(real_data):
    def rows(path):
        return map(json.loads, (real_data / path).read_text(encoding="utf-8").splitlines())

    for row in rows("pal_math/gsmhardv2.jsonl"):
        assert code.programs(f"Let us see.\n{row['code']}\nDone.").call == "solution"
    wrong = [
        row["gt"]
        for row in rows("tora_code_examples/examples.jsonl")
        if not code.judge({"output": row["messages"][1]["content"], "answer": row["gt"]}, "")[
            "correct"
        ]
    ]
    assert wrong == [r"\sqrt{39}", "-2x-1", r"5-2\sqrt{3}"]  # these need algebra
    for row in rows("openmath_samples/openmathinstruct2.test"):
        answered = {"output": row["generated_solution"], "answer": row["expected_answer"]}
        assert code.judge(answered, "")["correct"]


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"\boxed{1} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a \{ b} c", r"a \{ b"),
        (r"\fbox{3}", "3"),
        (r"\fbox{3} \boxed{4}", "4"),
        (r"\boxed{4} \fbox{3}", "4"),
        (r"\boxed{\frac{1}{2}", None),
        ("5", None),
    ],
)
def test_the_last_box_with_matching_braces_holds_the_answer(text, held):
    assert code.boxed(text) == held


@pytest.mark.parametrize(
    ("gold", "prediction", "published", "strict"),
    [
        ("18", "18", True, True),
        ("18", "18.0", True, True),
        ("114,200", "114200", True, True),
        ("18", "-18", False, False),
        ("18", "1800", True, False),
        ("18", "0.18", True, False),
        ("18", "18.001", True, False),
        ("18", r"\$18", True, True),
        ("50", r"50\%", True, True),
        ("0.5", r"\frac{1}{2}", True, True),
        ("5", r"5 \text{ km}", True, True),
        ("x + 1", "X+1", True, True),
        ("x + 1", "1+x", False, False),
        ("18", "eighteen", False, False),
        ("5", "1/0", False, False),
        ("0", "0", True, True),
        ("7", "9" * 400, False, False),
    ],
)
def test_equality_is_the_published_one_and_a_strict_one(gold, prediction, published, strict):
    assert code.published_equal(gold, prediction) is published
    assert code.strictly_equal(gold, prediction) is strict


def test_what_execution_found_is_judged_before_the_text():
    judged = code.judge({"output": r"\boxed{3}", "answer": "4", "value": "4"}, "here")
    assert judged["correct"] and judged["prediction"] == "4"
    assert not code.judge({"output": "4", "answer": "4"}, "here")["correct"]
    with pytest.raises(ValueError, match="here: the answer is empty"):
        code.check({"answer": " "}, "here")


LABELS = ["entailment", "neutral", "contradiction"]


@pytest.mark.parametrize(
    ("output", "choices", "exact", "sound"),
    [
        ("B", ["A", "B"], "B", "B"),
        (" B\n", ["A", "B"], "B", "B"),
        ("(B) town", ["A", "B"], None, "B"),
        ("a B", ["A", "B"], None, "B"),
        ("A good answer is B.", ["A", "B"], None, "B"),
        ("Ab", ["A", "B"], None, None),
        ("Neutral, not contradiction", LABELS, None, "neutral"),
        ("", LABELS, None, None),
    ],
)
def test_a_choice_is_compared_exactly_and_found_in_what_stands_around_it(
    output, choices, exact, sound
):
    judged = choice.judge({"output": output, "choices": choices, "answer": choices[1]}, "")
    assert (judged["prediction"], judged["sound_prediction"]) == (exact, sound)
    assert judged["correct"] is (exact == choices[1])
    assert judged["sound_correct"] is (sound == choices[1])


def test_the_most_likely_choice_is_taken_whole_and_by_its_characters():
    line = {"choices": LABELS, "answer": "neutral", "log_likelihoods": [-6.0, -5.0, -6.5]}
    judged = choice.judge_likelihoods(line, "")
    assert (judged["prediction"], judged["sound_prediction"]) == ("neutral", "contradiction")
    assert judged["correct"] and not judged["sound_correct"]
    equal = choice.judge_likelihoods(line | {"log_likelihoods": [-1.0, -1.0, -9.0]}, "")
    assert equal["prediction"] == "entailment"


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ({"answer": "maybe", "choices": LABELS}, "'maybe' is none of the choices"),
        ({"answer": "A", "choices": ["A", "A"]}, "are not distinct"),
        ({"answer": "A", "choices": ["A", "A "]}, "spaces around"),
        ({"answer": "A", "choices": ["A", ""]}, "are empty"),
        ({"answer": "4"}, "without choices"),
    ],
)
def test_problems_that_are_no_choice_are_refused(problem, message):
    with pytest.raises(ValueError, match=f"row 3: .*{message}"):
        choice.check(problem, "row 3")
