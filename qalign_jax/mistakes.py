"""Mistakes of one configuration, found one by one and told together."""

import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qalign_jax import credentials

LARGEST = 2**31 - 1  # of whole numbers: what an int32 holds


class Mistakes(ValueError):
    """What is wrong with a configuration: one line, or their count and a line each."""

    def __init__(self, lines: Sequence[str]):
        self.lines = [credentials.hidden(" ".join(line.split())) for line in lines]
        numbered = [f"  {number}. {line}" for number, line in enumerate(self.lines, 1)]
        several = "\n".join([f"{len(self.lines)} mistakes", *numbered])
        super().__init__(self.lines[0] if len(self.lines) == 1 else several)


def refuse(lines: Iterable[str]) -> None:
    """Raises the lines, each once, as one ValueError; does nothing where there is none."""
    if found := list(dict.fromkeys(lines)):
        raise Mistakes(found)


def of(where: str, call: Callable, *arguments: Any) -> list[str]:
    """The lines of the ValueError that a call raises, behind `where`; none where it returns."""
    try:
        call(*arguments)
    except ValueError as error:
        return [f"{where}{line}" for line in lines_of(error)]
    return []


def lines_of(error: ValueError) -> list[str]:
    return error.lines if isinstance(error, Mistakes) else Mistakes([str(error)]).lines


def expected(key: str, value: Any, wanted: str) -> str:
    """The line for a value: `tuned.lr=-1; expected at least 0`."""
    try:
        shown = repr(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        shown = "(a number of thousands of digits)"
    shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
    return f"{key}={shown}; expected {wanted}"


def wrong_types(where: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> list[str]:
    """The lines for the values that are none of their keys' types.

    A type is a text, bool, number, a sequence or a mapping of them, or one of several; any other
    is not checked. NaN and infinity are no numbers, True is none, and a text is no sequence.
    """
    wanted = {key: _wanted(value, hints.get(key)) for key, value in values.items()}
    return [expected(f"{where}{key}", values[key], one) for key, one in wanted.items() if one]


def out_of_range(
    where: str, values: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]
) -> list[str]:
    """The lines for the numbers that are not within (least, most) of their keys."""
    found = []
    for key, (least, most) in limits.items():
        if not least <= values[key] <= most:
            wanted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            found.append(expected(f"{where}{key}", values[key], wanted))
    return found


def _wanted(value: Any, hint: Any) -> str:
    """What is expected in place of a value that is no `hint`; "" where it is one."""
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is str:
        return "" if isinstance(value, str) else "a text"
    if origin is bool:
        return "" if isinstance(value, bool) else "True or False"
    if origin in (int, float):
        if isinstance(value, int) and not isinstance(value, bool):
            return "" if abs(value) <= LARGEST else f"a number of at most {LARGEST}"
        if origin is float and isinstance(value, float) and math.isfinite(value):
            return ""
        return "a whole number" if origin is int else "a number"
    if origin in (types.UnionType, typing.Union):
        wanted = [_wanted(value, each) for each in inner]
        return " or ".join(wanted) if all(wanted) else ""
    if origin is Mapping:
        if not isinstance(value, Mapping):
            return "keys with their values"
        wanted = [_wanted(each, inner[1]) for each in value.values()]
        return next((f"{one} for each key" for one in wanted if one), "")
    if origin in (Sequence, tuple):
        if isinstance(value, str) or not isinstance(value, Sequence):
            return "a list, like " + ("(0.5, 1.0)" if float in inner else "('de', 'fr')")
        wanted = [_wanted(each, inner[0]) for each in value] if inner else []
        return next((f"a list of which each is {one}" for one in wanted if one), "")
    return ""
