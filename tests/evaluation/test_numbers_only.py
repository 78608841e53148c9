import pytest

from qalign_jax.data.datasets import word_problems
from qalign_jax.evaluation.numbers_only import numbers_only_accuracy


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
    assert numbers_only_accuracy(train, test) == {"en": 50.0, "de": 100.0}


def test_numbers_alone_solve_few_word_problems_and_the_same_in_every_language():
    train = list(word_problems.generate("responses", count=2000))
    test = list(word_problems.generate("development", count=300))
    accuracy = numbers_only_accuracy(train, test)
    assert len(accuracy) == 6 and len(set(accuracy.values())) == 1
    assert 15 < accuracy["en"] < 40


def test_a_question_without_numbers_is_refused():
    with pytest.raises(ValueError, match="example a: no number in 'How many"):
        numbers_only_accuracy([{"id": "a", "question": "How many?", "answer": "3"}], [])
