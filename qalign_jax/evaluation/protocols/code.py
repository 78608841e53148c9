r"""Solutions with code: programs in a text, the answer in `\boxed{}`, and when answers are equal.

The forms are OpenMathInstruct-1's (`<llm-code>` blocks with their outputs between them,
NVIDIA/NeMo-Skills of 2024-02), ToRA's (fenced blocks) and PAL's (a function `solution()`).
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

START, STOP = "<llm-code>", "</llm-code>"
OUTPUT = "\n<llm-code-output>\n{}\n</llm-code-output>\n"  # appended behind STOP
PUBLISHED_TOLERANCE = 1e-4  # relative

_BLOCK = re.compile(rf"{START}(?P<label>)(?P<code>.*?)(?:{STOP}|(?P<open>\Z))", re.DOTALL)
# Outputs are fenced too: all fences are matched, those of code are kept.
_FENCED = re.compile(
    r"```(?P<label>\w*)[ \t]*\n(?P<code>.*?)(?:^```|(?P<open>\Z))", re.DOTALL | re.MULTILINE
)
_LABELS = ("", "py", "python")
_SOLUTION = re.compile(r"^(?:(?:import|from) [^\n]*\n+)*def solution\(", re.MULTILINE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_BRACE = re.compile(r"(?<!\\)[{}]")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(-?\d+)\}|(-?\d+)/(\d+)")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}")


class Programs(NamedTuple):
    """The programs of a solution: blocks to run in order, and the function to call behind them."""

    blocks: list[str]
    call: str  # "" or "solution"
    end: int  # where the last block ends in the text
    finished: bool  # whether the last block has its closing tag or fence


def check(problem: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError where the published answer is empty."""
    if not str(problem["answer"]).strip():
        raise ValueError(f"{where}: the answer is empty; fill it in or delete the row")


def judge(answered: Mapping[str, Any], where: str) -> dict[str, Any]:
    r"""Prediction and correctness, by the published equality and by a strict one.

    The prediction is `value`, which may be None, where the caller has executed the solution, else
    what the last `\boxed{}` holds, else None.

    Args:
      answered: output, answer, and optionally value, and equal, whether algebra has shown the
        prediction to be the answer.
    """
    check(answered, where)
    prediction = answered["value"] if "value" in answered else boxed(answered["output"])
    gold = str(answered["answer"])
    return {
        "prediction": prediction,
        "correct": prediction is not None
        and (published_equal(gold, prediction) or answered.get("equal", False)),
        "sound_prediction": prediction,
        "sound_correct": prediction is not None and strictly_equal(gold, prediction),
    }


def programs(text: str) -> Programs | None:
    """The programs of a solution in any of the three forms; None where it has none."""
    for pattern in (_BLOCK, _FENCED):
        found = [match for match in pattern.finditer(text) if match["label"] in _LABELS]
        if found:
            blocks, last = [match["code"].strip("\n") for match in found], found[-1]
            call = "solution" if "def solution(" in blocks[-1] else ""
            return Programs(blocks, call, last.end(), last["open"] is None)
    if bare := _SOLUTION.search(text):
        block = _function(text[bare.start() :])
        return Programs([block], "solution", bare.start() + len(block), True)
    return None


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{}` holds, or else `\fbox{}`; None where its braces do not match."""
    starts = list(_BOX.finditer(text))
    starts = [start for start in starts if start[0].startswith("\\boxed")] or starts
    if not starts:
        return None
    depth, begin = 1, starts[-1].end()
    for brace in _BRACE.finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[begin : brace.start()].strip()
    return None


def published_equal(gold: str, prediction: str) -> bool:
    """The equality of NeMo-Skills' grader, as far as it needs no algebra.

    The same text, case, spaces, `$` and `%` aside; or a number within 1e-4 relative of the
    gold, of a hundredth and of a hundred times it (a percentage).
    """
    if _plain(gold) == _plain(prediction):
        return True
    one, other = number_of(gold), number_of(prediction)
    if one is None or other is None:
        return False
    return any(
        abs(other - target) <= PUBLISHED_TOLERANCE * abs(target)
        for target in (one, one / 100, one * 100)
    )


def strictly_equal(gold: str, prediction: str) -> bool:
    """The same number to nine digits, or the same text, case and spaces aside."""
    one, other = number_of(gold), number_of(prediction)
    if one is None or other is None:
        return _plain(gold) == _plain(prediction)
    return abs(one - other) <= 1e-9 * max(1, abs(one))


def number_of(text: str) -> Fraction | None:
    r"""The number that a text is as a whole: 1,234.5, -3e4, 3/4, \frac{3}{4}, $5, 5 \text{ km}."""
    plain = _plain(_TEXT.sub("", text)).replace("{,}", ",").replace("\\!", "").replace(",", "")
    if fraction := _FRACTION.fullmatch(plain):
        over, under = (int(part) for part in fraction.groups() if part is not None)
        return Fraction(over, under) if under else None
    if not re.fullmatch(r"[+-]?(\d{1,300}\.?\d{0,300}|\.\d{1,300})(e[+-]?\d{1,2})?", plain):
        return None
    return Fraction(plain.removesuffix("."))


def _plain(text: str) -> str:
    return re.sub(r"\s|\\?[$%]", "", text).removesuffix(".").lower()


def _function(text: str) -> str:
    """The lines from the beginning that are blank, indented, or open a function or an import."""
    lines = []
    for line in text.split("\n"):
        if line.strip() and not line.startswith((" ", "\t", "def ", "import ", "from ", "@")):
            break
        lines.append(line)
    return "\n".join(lines)
