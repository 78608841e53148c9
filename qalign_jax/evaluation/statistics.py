"""Accuracies: per language, and averaged as the paper averages."""

from collections.abc import Mapping, Sequence


def accuracies(correct: Mapping[str, Sequence[bool]], averaged: Sequence[str]) -> dict[str, float]:
    """Percentages, rounded to two decimals: each language, `average` and `non_english`.

    `average` is the plain mean over those languages of `averaged` that are present (over all
    present ones if none of them is), so that a language with more problems counts no more;
    `non_english` is the same without English, left out where nothing but English is present.
    """
    per_language = {
        language: 100.0 * sum(row) / len(row) for language, row in correct.items() if row
    }
    if not per_language:
        raise ValueError("there is no answer to score")
    counted = [language for language in averaged if language in per_language]
    counted = counted or list(per_language)
    scores = dict(per_language)
    scores["average"] = _mean(per_language[language] for language in counted)
    if others := [language for language in counted if language != "en"]:
        scores["non_english"] = _mean(per_language[language] for language in others)
    return {name: round(score, 2) for name, score in scores.items()}


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
