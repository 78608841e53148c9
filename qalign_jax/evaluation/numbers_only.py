"""The floor for the demo's accuracies: word problems solved from their numbers, without words."""

import collections
import itertools
import operator
import re
from collections.abc import Iterable, Mapping

_NUMBER = re.compile(r"\d+")
_SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def numbers_only(
    train_examples: Iterable[Mapping[str, str]], test_examples: Iterable[Mapping[str, str]]
) -> dict[str, list[bool]]:
    """Whether a reader that sees a question's numbers only is right, by language.

    The reader combines the numbers from left to right. From the training examples it learns, for
    each count of numbers, how often which signs are right; of a test question's
    candidates it takes the most often right one that gives a whole number within the range of the
    training answers. A question is `question` or `instruction`, an answer the last number of
    `answer` or `response`.
    """
    right = collections.defaultdict(collections.Counter)
    answers = []
    for example in train_examples:
        numbers, answer = _read(example)
        answers.append(answer)
        for signs in _all_signs(len(numbers)):
            right[len(numbers)][signs] += _combine(numbers, signs) == answer
    smallest, largest = min(answers), max(answers)

    correct = collections.defaultdict(list)
    for example in test_examples:
        numbers, answer = _read(example)
        values = (_combine(numbers, signs) for signs, _ in right[len(numbers)].most_common())
        plausible = (v for v in values if smallest <= v <= largest and v == int(v))
        correct[example["language"]].append(next(plausible, None) == answer)
    return dict(correct)


def _read(example: Mapping[str, str]) -> tuple[list[int], int]:
    question = example.get("question") or example["instruction"]
    answer = example.get("answer") or example["response"]
    numbers, found = ([int(n) for n in _NUMBER.findall(text)] for text in (question, answer))
    if not numbers or not found:
        raise ValueError(f"example {example.get('id')}: no number in {question!r} or {answer!r}")
    return numbers, found[-1]


def _all_signs(numbers: int) -> Iterable[tuple[str, ...]]:
    return itertools.product(_SIGNS, repeat=numbers - 1)


def _combine(numbers: list[int], signs: tuple[str, ...]) -> float:
    value = numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "/" and number == 0:
            return float("nan")
        value = _SIGNS[sign](value, number)
    return value
