"""Answers that are numbers, by the paper's reader and by a sound one beside it."""

from collections.abc import Mapping
from typing import Any

from qalign_jax.evaluation import answers


def check(problem: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError where the published answer holds no number; `where` says which it is."""
    _gold(problem, where)


def judge(answered: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Prediction and correctness of an output, by both readers.

    A prediction too large for a float is None, as JSON has no infinity; it is never correct.

    Args:
      answered: output (the whole response), answer (the published one), language.
    """
    gold, sound_gold = _gold(answered, where)
    output = answered["output"]
    prediction, sound = answers.paper(output), answers.sound(output, answered["language"] or "en")
    return {
        "prediction": prediction if prediction != float("inf") else None,
        "correct": answers.paper_correct(gold, prediction),
        "sound_prediction": sound,
        "sound_correct": answers.sound_correct(sound_gold, sound),
    }


def _gold(problem: Mapping[str, Any], where: str) -> tuple[float, float]:
    """The published answer as the paper's reader and as the sound reader read it."""
    answer = problem["answer"]
    sound = answers.sound(answer, "en")
    if sound is None:
        raise ValueError(f"{where}: the answer {answer!r} holds no number; give one, like 18")
    return answers.paper(answer), sound
