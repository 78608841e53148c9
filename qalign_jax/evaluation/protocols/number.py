"""Answers that are numbers, by the paper's reader and by a sound one beside it."""

from typing import Any

from qalign_jax.evaluation import answers


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
    """Prediction and correctness of an output, by both readers.

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
