"""The two readers of an answer: the paper's, byte for byte, and a sound one.

A reader takes a model's whole response and returns the number that it gives as its answer. The
paper's reader is the headline, so that figures compare with published ones; the sound reader
is reported beside it and shows what that protocol hides (signs, decimal commas, spaced digits).
"""

import math
import re
import unicodedata
from typing import NamedTuple

# --- the paper's reader ------------------------------------------------------------------------


def paper(text: str) -> float:
    r"""Reads an answer as the evaluation code of arXiv 2405.01345 does.

    Joins digit groups with `(\d),(\d)`, then takes the last `\d+(\.\d+)?`; 0.0 where there is
    none. So the sign is dropped, `3,5` is 35, `1.000` is 1.0, `1,2,3` becomes `12,3`, and any
    script's decimal digits count, since both `\d` and `float` accept them. Over 308 digits read
    as infinity, which equals no gold answer.
    """
    joined = re.sub(r"(\d),(\d)", r"\1\2", text)
    numbers = re.findall(r"\d+(?:\.\d+)?", joined)
    return float(numbers[-1]) if numbers else 0.0


def paper_correct(gold: float, predicted: float) -> bool:
    """The paper's comparison: an absolute difference under 1e-3."""
    return abs(gold - predicted) < 1e-3


# --- the sound reader --------------------------------------------------------------------------

# Languages that write 3,5 for three and a half; all others here write 3.5.
DECIMAL_COMMA = frozenset("de fr es ru it nl pl pt tr vi bg el".split())

# Phrases that announce an answer. A verb may be followed by words before the number; a bare colon
# only by the number itself, because "Step-by-step answer:" opens a solution.
_PHRASES = {
    "en": r"answer\s+is|answer\s+equals",
    "de": r"antwort\s+(?:ist|lautet|beträgt)|lösung\s+(?:ist|lautet)",
    "fr": r"réponse\s+(?:finale\s+)?est",
    "es": r"respuesta\s+(?:final\s+)?es",
    "ru": r"ответ\s*[—–]\s|ответ\s+(?:равен|есть)",
    "zh": r"答案(?:是|为|為)",
    "ja": r"答え?は",
    "th": r"คำตอบ(?:คือ|เป็น)",
    "sw": r"(?:jibu|jawabu)\s+ni",
    "bn": r"উত্তর\s+(?:হলো|হল|হচ্ছে)",
    "te": r"సమాధానం(?=\s*\d)",
}
_NOUNS = {
    "en": "answer",
    "de": "antwort|lösung",
    "fr": "réponse",
    "es": "respuesta",
    "ru": "ответ",
    "zh": "答案|答",
    "ja": "答え?",
    "th": "คำตอบ",
    "sw": "jibu|jawabu",
    "bn": "উত্তর",
    "te": "సమాధానం",
}
_CURRENCY = "$€£¥₹₽฿৳₩₫₺₴¢₦₱"
_MINUS = "-\u2212\u2013\ufe63\uff0d\u2010\u2011"
_SPACE = " \u00a0\u202f\u2009\u2007"
_VULGAR = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"

_REACH = 200  # characters after a marker in which its number stands
_BRACE = re.compile(r"[{}]")

_MARKERS = re.compile(
    r"(?P<any>\\boxed\s*\{|\#\#\#\#)|"
    + "|".join(
        rf"(?P<{code}>{_PHRASES[code]}|(?:{_NOUNS[code]})\s*\**\s*[:：]"
        rf"(?=[\s*({{{re.escape(_CURRENCY)}\\{re.escape(_MINUS)}]*\.?\d))"
        for code in _PHRASES
    ),
    re.IGNORECASE,
)

# Digits with separators between them. A space or an apostrophe separates only groups of three,
# and what has an exponent or index mark in front is no number of its own.
_RUN = rf"\d+(?:(?:[.,]|[{_SPACE}'’](?=\d{{3}}(?!\d)))\d+)*"
_NUMBER = re.compile(
    rf"(?<!\d)(?<![\^_])(?<![\^_]\{{)(?:"
    rf"(?:(?P<whole>\d+)[ ])?(?<![\d.,])(?<!\d/)(?P<over>\d+)[ ]?/[ ]?"
    rf"(?P<under>\d+)(?![\d/])(?![.,]\d)|"
    rf"(?P<part>\d*)[ ]?(?P<vulgar>[{_VULGAR}])|"
    rf"(?P<bare>(?<![\w.])\.\d+)|"
    rf"(?P<run>{_RUN})(?P<exponent>[eE][+-]?\d{{1,3}}(?!\w))?)"
)
_SIGN = re.compile(
    rf"[{re.escape(_MINUS)}](?P<gap>[{_SPACE}]?)(?:[A-Z]{{0,3}}[{_CURRENCY}][{_SPACE}]?)?$"
)
_THREES = re.compile(r"[1-9]\d{0,2}(?:\D\d{3})+")
_INDIAN = re.compile(r"[1-9]\d?(?:,\d{2})+,\d{3}")
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")  # Thai, kana, Han
_EQUATION = re.compile(rf"[\d.,()+*/×÷·x% \\{_CURRENCY}{re.escape(_MINUS)}=＝]*[=＝]")


class _Convention(NamedTuple):
    decimal: str  # "." or ","
    shown: bool  # by other numbers of the same text, not only by its language


def sound(text: str, language: str = "en") -> float | None:
    r"""Reads the number that a response gives as its answer; None where it gives none.

    Where: after the last answer marker that has a number (`The answer is`, `answer: 7`, their
    counterparts in the mGSM languages, `\boxed{}`, `####`), there the first number, or the
    result of the equation that starts there (`5 + 6 = 11`); else the last number of the text.

    What a number is:
      - any script's decimal digits, full-width forms included;
      - a minus in front of it or of its currency sign is its sign (-, U+2212, en dash, ...), but
        not between two operands or in a range (`20-5`, `3-5`) or after a letter (`COVID-19`);
      - digit groups: 1,234,567  1.234.567  1 234 567 (any space)  1'234  and Indian 1,00,000;
      - a single comma before exactly three digits groups (1,234), else it is decimal (3,5);
        a single dot before exactly three digits groups where the decimal mark is a comma;
      - the decimal mark is what the text's unambiguous numbers use, else the marker's language's,
        else the `language`'s. Only a text that shows decimal commas makes `3,125` a decimal;
        real questions in all of these languages use that shape for thousands;
      - fractions: 3/4, 2 1/2, ½, \frac{3}{4}; exponents: 1.5e6; a percentage is its figure;
      - superscripts and indices (`cm^2`, `x_1`) are none. Number words, Han numerals and scale
        words (`three`, `三`, `2 million`) are not read.
    """
    text = _plain(text)
    for marker in reversed(list(_MARKERS.finditer(text))):
        spoken = language if marker.lastgroup in (None, "any") else marker.lastgroup
        number = _announced(text, marker)
        values = _values(text, number, _convention(text, spoken)) if number else []
        if values:
            return values[0]
    convention = _convention(text, language)
    for number in reversed(list(_NUMBER.finditer(text))):
        values = _values(text, number, convention)
        if values:
            return values[-1]
    return None


def sound_correct(gold: float, predicted: float | None) -> bool:
    """Equal to 1e-3, or to nine significant digits above a million; None is never correct."""
    return predicted is not None and math.isclose(gold, predicted, rel_tol=1e-9, abs_tol=1e-3)


def _announced(text: str, marker: re.Match) -> re.Match | None:
    """The number that a marker announces: the first after it, or an equation's result."""
    start = marker.end()
    end = min(len(text), start + _REACH)
    if marker[0].startswith("\\boxed"):
        depth = 1
        for brace in _BRACE.finditer(text, start, end):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                end = brace.start()
                break
    number = _NUMBER.search(text, start, end)
    equation = _EQUATION.match(text, number.start(), end) if number else None
    return (equation and _NUMBER.search(text, equation.end(), end)) or number


def _plain(text: str) -> str:
    """ASCII digits and marks, no invisible characters, no LaTeX dressing around numbers."""
    text = re.sub(r"[^\x00-\x7f]", _ascii, text)
    text = re.sub(r"(?<=\d)[，](?=\d)", ",", text)
    text = re.sub(r"(?<=\d)[．٫](?=\d)", ".", text)
    text = re.sub(r"(?<=\d)٬(?=\d)", "'", text)
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\,", "\u202f")
    text = re.sub(r"(?<=\d)\\(?=[dt]?frac)", r" \\", text)
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1/\2", text)
    return re.sub(r"\\(?=[$%])", "", text)


def _ascii(match: re.Match) -> str:
    character = match[0]
    if character == "\u200b":  # a word boundary in Thai
        return " "
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return "" if category == "Cf" else character


def _convention(text: str, language: str) -> _Convention:
    shown = {".": 0, ",": 0}
    for number in _NUMBER.finditer(text):
        run = number["run"] or ""
        marks = re.sub(r"\d", "", run)
        if not marks or marks[-1] not in shown:
            continue
        mark, other = (".", ",") if marks[-1] == "." else (",", ".")
        if len(marks) == 1 and mark == "," and language not in DECIMAL_COMMA:
            continue  # as likely a list: (3,5)
        if len(marks) > 1 and marks.count(mark) == len(marks) and _THREES.fullmatch(run):
            shown[other] += 1  # 1,234,567: this mark groups
        elif marks.count(mark) == 1 and (len(marks) > 1 or not _THREES.fullmatch(run)):
            shown[mark] += 1  # 3.50, 0.125 or 1,234.5
    if shown["."] != shown[","]:
        return _Convention("." if shown["."] > shown[","] else ",", True)
    return _Convention("," if language in DECIMAL_COMMA else ".", False)


def _values(text: str, number: re.Match, convention: _Convention) -> list[float]:
    """The values of one match: several where its separators turn out to be a list's."""
    if number["over"] is not None:
        over, under = float(number["over"]), float(number["under"])
        values = [float(number["whole"] or 0) + over / under] if under else [over, under]
    elif number["vulgar"] is not None:
        values = [float(number["part"] or 0) + unicodedata.numeric(number["vulgar"])]
    elif number["bare"] is not None:
        values = [float(number["bare"])]
    else:
        values = _pieces(number["run"], convention)
        if number["exponent"]:
            values[-1] *= float("1" + number["exponent"])
    values = [value for value in values if math.isfinite(value)]
    if values and _negative(text, number.start()):
        values[0] = -values[0]
    return values


def _pieces(run: str, convention: _Convention) -> list[float]:
    value = _value(run, convention)
    if value is not None:
        return [value]
    parts = re.split(rf"[{_SPACE}]", run)
    if len(parts) == 1:
        parts = re.split(r"\D", run)
    return [value for part in parts for value in _pieces(part, convention)]


def _value(run: str, convention: _Convention) -> float | None:
    marks = re.sub(r"\d", "", run)
    whole, fraction = run, "0"
    decimal = marks[-1:] in (".", ",") and marks.count(marks[-1:]) == 1
    if decimal and not (len(marks) == 1 and _one_group(run, marks, convention)):
        whole, fraction = run.rsplit(marks[-1], 1)
    separators = set(re.sub(r"\d", "", whole))
    if separators and not (
        len(separators) == 1 and (_THREES.fullmatch(whole) or _INDIAN.fullmatch(whole))
    ):
        return None
    return float(re.sub(r"\D", "", whole) + "." + fraction)


def _one_group(run: str, mark: str, convention: _Convention) -> bool:
    """Whether the only mark of 1,234 or 1.234 groups digits."""
    if not _THREES.fullmatch(run):
        return False
    if mark == ",":
        return convention != (",", True)
    return convention.decimal == ","


def _negative(text: str, start: int) -> bool:
    before = text[max(0, start - 24) : start]
    sign = _SIGN.search(before)
    if not sign:
        return False
    touching = before[: sign.start()][-1:]
    operand = before[: sign.start()].rstrip(_SPACE + _CURRENCY)[-1:]
    if sign["gap"]:  # "- 5" is a bullet or a subtraction, except in "= - 5" and "(- 5"
        return operand in ("=", "＝", "(", "{")
    if operand.isdigit() or operand in (")", "]", "}", "%"):
        return False
    hyphen = touching and unicodedata.category(touching)[0] in "LM"
    return not hyphen or bool(_UNSPACED.match(touching))
