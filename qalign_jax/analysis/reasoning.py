"""Agreement of reasoning: how far solutions to one question have the same intermediate numbers.

The numbers of a solution are the results of its steps, that is the numbers right of an equals
sign; all of its numbers where it has no equation. They are read as the sound reader reads them
(evaluation/answers.py). The agreement of two solutions is the Jaccard index of their numbers as
multisets: what both have, divided by what either has.
"""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from qalign_jax import files, schema
from qalign_jax.evaluation import answers
from qalign_jax.evaluation.records import check_answer, check_header

ENGLISH = "en"

# What `answers.sound` is given to read: digits of any script, their separators, a fraction's line.
_NUMBER = r"\d+(?:(?:[.,/．٫٬]|[ \u00a0\u202f'’](?=\d{3}(?!\d)))\d+)*"
# Signs, brackets and currency signs may stand before a result. A number that is calculated with
# is none: 3 of "x = 3 + 4 = 7".
_RESULT = re.compile(rf"[=＝]\s*([^\s\w=＝]{{0,3}}\s?(?>{_NUMBER}))(?![^\S\n]*[-+*/×÷x−]\s*[\d(])")


def numbers(solution: str, language: str) -> collections.Counter[float]:
    """The numbers of a solution, by how often it has them; `language` is a hint to the reader."""
    found = _RESULT.findall(solution) or re.findall(_NUMBER, solution)
    values = (answers.sound(piece, language) for piece in found)
    return collections.Counter(round(value, 3) for value in values if value is not None)


def agreement(one: Mapping[float, int], other: Mapping[float, int]) -> float:
    """The Jaccard index of two multisets, at least one of them not empty."""
    first, second = collections.Counter(one), collections.Counter(other)
    return (first & second).total() / (first | second).total()


def read_answers(folder: epath.Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Language -> id -> answer, from the files of one system on one benchmark.

    Raises:
      ValueError: a file that is damaged.
    """
    remedy = "start the evaluation again, which mends it"
    found = {}
    needed = {"output": schema.TEXT, "correct": schema.FLAG}
    for path in sorted(folder.glob("*.jsonl")):
        found[path.stem] = rows = {}
        for place, (number, row) in enumerate(files.read_json_lines(path, remedy)):
            where = f"{path}:{number}"
            if not place:
                check_header(row, where, remedy)
                continue
            check_answer(row, where, remedy)
            schema.check(row, needed, where, remedy)
            rows[row["id"]] = row
    return found


def compare(languages: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """How far the solutions in each language agree with the English ones of the same ids.

    Args:
      languages: as `read_answers`; an answer has `output` and `correct`.

    Returns:
      language -> {"all", "both_right", "not_both_right": mean agreement in percent; "by_chance":
      that with the English solution of the next question; "solutions", "both_right_solutions":
      how many}. A pair of solutions without any number is left out; a mean over none is None.

    Raises:
      ValueError: no English answers, no others, or fewer than two of the same ids.
    """
    if ENGLISH not in languages or len(languages) < 2:
        raise ValueError(
            "expected answers in English (en) and at least one other language, found "
            f"{' '.join(languages) or 'none'}"
        )
    english = languages[ENGLISH]
    theirs = {i: numbers(answer["output"], ENGLISH) for i, answer in english.items()}
    return {
        language: _against_english(language, rows, english, theirs)
        for language, rows in languages.items()
        if language != ENGLISH
    }


def _against_english(language: str, rows, english, theirs) -> dict[str, float | int | None]:
    shared = [i for i in rows if i in english]
    if len(shared) < 2:
        raise ValueError(f"{len(shared)} answers in {language} have an English one; expected two")
    own = {i: numbers(rows[i]["output"], language) for i in shared}
    right = {i: bool(rows[i]["correct"] and english[i]["correct"]) for i in shared}
    same = {i: agreement(own[i], theirs[i]) for i in shared if own[i] or theirs[i]}
    following = zip(shared, shared[1:] + shared[:1], strict=True)
    chance = [agreement(own[i], theirs[j]) for i, j in following if own[i] or theirs[j]]
    return {
        "all": _percent(list(same.values())),
        "both_right": _percent([value for i, value in same.items() if right[i]]),
        "not_both_right": _percent([value for i, value in same.items() if not right[i]]),
        "by_chance": _percent(chance),
        "solutions": len(same),
        "both_right_solutions": sum(right[i] for i in same),
    }


def _percent(values: Sequence[float]) -> float | None:
    return round(100 * float(np.mean(values)), 2) if values else None
