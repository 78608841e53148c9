import pytest

from qalign_jax.data.datasets import word_problems
from qalign_jax.evaluation.numbers_only import numbers_only


def training(question, answer):
    return {"instruction": question, "response": answer, "language": "en"}


def test_the_commonest_plausible_signs_are_chosen():
    train = [
        training("3 and 4 more", "3+4=7. The answer is 7."),
        training("5 and 6 more", "The answer is 11."),
        training("9 without 7", "The answer is 2."),
        training("2 of 10", "The answer is 20."),
    ]
    test = [
        {"language": "en", "question": "8 and 5 more", "answer": "13"},
        {"language": "en", "question": "8 without 5", "answer": "3"},
        # 15 + 9 is more than any training answer, so the next most frequent signs are taken.
        {"language": "de", "question": "15 weniger 9", "answer": "6"},
    ]
    assert numbers_only(train, test) == {"en": [True, False], "de": [True]}


def test_numbers_alone_solve_few_word_problems_and_the_same_in_every_language():
    train = list(word_problems.generate("responses", count=2000))
    test = list(word_problems.generate("development", count=300))
    correct = numbers_only(train, test)
    assert len(correct) == 6 and all(found == correct["en"] for found in correct.values())
    assert 0.15 < sum(correct["en"]) / 300 < 0.4


def test_a_question_without_numbers_is_refused():
    with pytest.raises(ValueError, match="example a: no number in 'How many"):
        numbers_only([{"id": "a", "question": "How many?", "answer": "3"}], [])
