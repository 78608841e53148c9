"""Answers that are one of a few choices: a letter, or a label of natural language inference."""

import re
from collections.abc import Mapping
from typing import Any


def check(problem: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError where the problem's choices are not distinct, or its answer is none."""
    choices, answer = problem.get("choices", ()), problem["answer"]
    if not choices:
        raise ValueError(f"{where}: a problem without choices; take another protocol")
    if any(choice != choice.strip() or not choice for choice in choices):
        raise ValueError(f"{where}: the choices {choices} are empty or have spaces around them")
    if len(set(choices)) < len(choices):
        raise ValueError(f"{where}: the choices {choices} are not distinct; mend the row")
    if answer not in choices:
        raise ValueError(f"{where}: the answer {answer!r} is none of the choices {choices}")


def judge(answered: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Prediction and correctness of a generated letter or label, by both readers.

    The published reader takes the whole output, white space around it aside; it predicts nothing
    where that is none of the choices. The sound one takes the first choice that stands in the
    output as a word of its own, in any case of letters; a single letter only where it is a
    capital without a word behind it (`(B)`, `B. town`).

    Args:
      answered: output, answer and choices.
    """
    check(answered, where)
    output, choices = answered["output"], answered["choices"]
    prediction = output.strip() if output.strip() in choices else None
    sound = _first(output, choices)
    return {
        "prediction": prediction,
        "correct": prediction == answered["answer"],
        "sound_prediction": sound,
        "sound_correct": sound == answered["answer"],
    }


def judge_likelihoods(answered: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Prediction and correctness of the most likely choice; of equal ones the first.

    The sound reader's place takes the likelihood divided by the choice's characters (acc_norm of
    lm-evaluation-harness): labels of several words are longer than others.

    Args:
      answered: log_likelihoods (of the choices, in nats), answer and choices.
    """
    check(answered, where)
    choices, values = answered["choices"], answered["log_likelihoods"]
    scaled = [value / len(text) for value, text in zip(values, choices, strict=True)]
    prediction, per_character = (choices[row.index(max(row))] for row in (values, scaled))
    return {
        "prediction": prediction,
        "correct": prediction == answered["answer"],
        "sound_prediction": per_character,
        "sound_correct": per_character == answered["answer"],
    }


def _first(output: str, choices: list[str]) -> str | None:
    """The choice that comes first in the output."""
    found = []
    for choice in choices:
        # a letter has no word behind it: "A good answer is B"
        behind, flags = (r"(?!\w)", re.IGNORECASE) if len(choice) > 1 else (r"(?!\w| \w)", 0)
        if match := re.search(rf"(?<!\w){re.escape(choice)}{behind}", output, flags):
            found.append((match.start(), choice))
    return min(found)[1] if found else None
