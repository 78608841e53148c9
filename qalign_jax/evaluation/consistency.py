"""Consistency: answers in the question's language, and predictions equal to the English ones."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from qalign_jax.evaluation import answer_language, answers, statistics


def answer_consistency(
    outputs: Mapping[str, Sequence[str]], averaged: Sequence[str]
) -> dict[str, float]:
    """Percentages of answers written in the question's language, named as in `accuracies`.

    An answer without words counts as not written in it. A language that the identifier does not
    know is logged and left out; empty where none is left.

    Args:
      outputs: language -> the answers to its questions, as generated.
      averaged: the languages of the benchmark's average.
    """
    outputs = {language: texts for language, texts in outputs.items() if texts}
    if unknown := sorted(outputs.keys() - answer_language.known_languages()):
        logging.warning(
            "%s: no share of answers in the question's language, because the identifier of "
            "qalign_jax/evaluation/answer_language.py does not know it",
            " ".join(unknown),
        )
    consistent = {
        language: [answer_language.language_of(text) == language for text in texts]
        for language, texts in outputs.items()
        if language not in unknown
    }
    return statistics.accuracies(consistent, averaged) if consistent else {}


def prediction_consistency(
    predictions: Mapping[str, Mapping[str, Any]], averaged: Sequence[str]
) -> dict[str, float]:
    """Percentages of predictions equal to the English one for the same question.

    Numbers are equal to 1e-3, as in `answers.paper_correct`, anything else exactly; None, a missing
    prediction, equals nothing.

    Args:
      predictions: language -> question id -> prediction; ids without an English one are left out.
      averaged: the languages of the benchmark's average.

    Returns:
      {"<language>": .., "non_english": ..}; empty without English, or where no other language
      shares a question with it.
    """
    english = predictions.get("en", {})
    equal = {
        language: [_equal(row[key], english[key]) for key in row if key in english]
        for language, row in predictions.items()
        if language != "en" and row.keys() & english.keys()
    }
    if not equal:
        return {}
    shares = statistics.accuracies(equal, averaged)
    del shares["average"]  # without English the same as non_english
    return shares


def _equal(prediction: Any, english: Any) -> bool:
    if prediction is None or english is None:
        return False
    if isinstance(prediction, numbers.Real) and isinstance(english, numbers.Real):
        return answers.paper_correct(float(english), float(prediction))
    return prediction == english
