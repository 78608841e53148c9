"""Accuracies: per language, averaged as the paper averages, and kept in results.json."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from qalign_jax.evaluation import answers, records


def read_gold(answer: str, where: str) -> tuple[float, float]:
    """A published answer as the paper's reader and as the sound reader read it.

    Raises:
      ValueError: it holds no number; `where` says which answer it is.
    """
    sound = answers.sound(answer, "en")
    if sound is None:
        raise ValueError(f"{where}: the answer {answer!r} holds no number; give one, like 18")
    return answers.paper(answer), sound


def judge(output: str, answer: str, language: str, where: str) -> dict[str, Any]:
    """What both readers make of an output: prediction, correct, and the sound reader's two.

    A prediction too large for a float is None, as JSON has no infinity; it is never correct.
    """
    gold, sound_gold = read_gold(answer, where)
    prediction, sound = answers.paper(output), answers.sound(output, language or "en")
    return {
        "prediction": prediction if prediction != float("inf") else None,
        "correct": answers.paper_correct(gold, prediction),
        "sound_prediction": sound,
        "sound_correct": answers.sound_correct(sound_gold, sound),
    }


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


def save_results(
    path: str | os.PathLike, systems: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Merges `{system: {benchmark: result}}` into a stage's results.json; returns all of it."""
    path = epath.Path(path)
    results: dict[str, Any] = {"systems": {}}
    if path.exists():
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            results["systems"].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is no results file of ours; delete it: results are made again from the "
                "answers beside it"
            ) from error
    for system, benchmarks in systems.items():
        results["systems"].setdefault(system, {}).update(benchmarks)
    records.write_text(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
