"""The shape of what a JSON file must hold, checked where it is read.

A shape is a Leaf; a dict, an object with these keys (one that ends in "?" may be absent, `...`
stands for all others; keys that are not named are not looked at); a list of one shape, a list of
any length; or a tuple, a list of exactly these.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

_SHOWN = 40  # characters of a wrong value in a message


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A value that `takes` accepts; `words` say which, for messages."""

    words: str
    takes: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Maybe:
    """A shape, or null."""

    shape: Any


ANYTHING = Leaf("a value", lambda value: True)
TEXT = Leaf("text", lambda value: isinstance(value, str))
FLAG = Leaf("true or false", lambda value: isinstance(value, bool))


def number(least: float = -1e15, most: float = 1e15) -> Leaf:
    """A number in a range, both ends included; NaN is in none."""
    words = f"a number from {least:g} to {most:g}"
    return Leaf(words, lambda value: _is_number(value) and least <= value <= most)


def whole(least: int = 0, most: int = 2**53) -> Leaf:
    """A whole number in a range, both ends included."""
    words = f"a whole number from {least} to {most}"
    return Leaf(
        words,
        lambda value: _is_number(value) and isinstance(value, int) and least <= value <= most,
    )


def one_of(*choices: Any) -> Leaf:
    """One of these values, which are of one type."""
    words = f"one of {', '.join(map(str, choices))}"
    return Leaf(words, lambda value: type(value) is type(choices[0]) and value in choices)


NUMBER = number()
PERCENT = number(0, 100)


def check(value: Any, shape: Any, where: str, remedy: str = "", at: str = "") -> None:
    """Compares a value with a shape.

    Args:
      where: names the file in errors.
      remedy: what to do about it.
      at: the place of the value in the file's; "" is all of it.

    Raises:
      ValueError: the place, what was found there and what was expected.
    """

    def expected(words: str):
        found = json.dumps(value, ensure_ascii=False, default=str)
        found = found if len(found) <= _SHOWN else found[: _SHOWN - 3] + "..."
        place = f"{at} is {found}" if at else f"found {found}"
        behind = f"; {remedy}" if remedy else ""
        return ValueError(f"{where}: {place}; expected {words}{behind}")

    if isinstance(shape, Maybe):
        if value is not None:
            check(value, shape.shape, where, remedy, at)
    elif isinstance(shape, Leaf):
        if not shape.takes(value):
            raise expected(shape.words)
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise expected("an object")
        named = {key.removesuffix("?"): key for key in shape if key is not ...}
        for name, key in named.items():
            if name in value:
                check(value[name], shape[key], where, remedy, _below(at, name))
            elif name == key:
                raise expected(f"an object with {name!r}")
        for name in value.keys() - named.keys() if ... in shape else ():
            check(value[name], shape[...], where, remedy, _below(at, name))
    else:
        if not isinstance(value, list):
            raise expected("a list")
        if isinstance(shape, tuple) and len(value) != len(shape):
            raise expected(f"a list of {len(shape)}")
        inner = shape if isinstance(shape, tuple) else shape * len(value)
        for place, (each, wanted) in enumerate(zip(value, inner, strict=True)):
            check(each, wanted, where, remedy, f"{at}[{place}]")


def _below(at: str, name: str) -> str:
    name = name if len(name) <= _SHOWN else name[: _SHOWN - 3] + "..."
    return f"{at}.{name}" if at else name


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
