"""The language that an answer is written in, by py3langid; nothing is downloaded.

py3langid rather than lingua: as right on whole solutions (100 and 99.8 % and above) and on single
sentences (NTREX 99.8 and 99.6 %, mGSM 99.4 and 99.5 %; steps of a few English words 96 and 99 %),
and it takes 5 MB on disk and 60 MB of memory, not 100 and 390; it knows twice the languages.
`python -m tests.benchmarks.answer_language` measures it.
"""

import functools
import re
import unicodedata

from qalign_jax.data import prompts

# Code, GSM8K's calculator annotations and LaTeX; code and display formulas may be cut off.
# `$5 and she sold it for $7` is no formula: between dollars only single letters are variables.
_FORMULA = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|"
    r"<llm-code>.*?(?:</llm-code>|\Z)|<llm-code-output>.*?(?:</llm-code-output>|\Z)|"
    r"<<[^<>\n]*>>|"
    r"\\\[.*?(?:\\\]|\Z)|\\begin\{(\w+\*?)\}.*?(?:\\end\{\1\}|\Z)|\\\(.*?(?:\\\)|\n|\Z)|"
    r"\$\$.*?\$\$|\$(?:\\[A-Za-z]++|\\[^A-Za-z]|[\d_]|[^\w$\\]|[A-Za-z](?![A-Za-z]))+\$|"
    r"\\[A-Za-z]+",
    re.DOTALL,
)
# A letter beside an operator or a digit: 3x + y = 5.
_VARIABLE = re.compile(
    r"(?<![^\W\d_])[A-Za-z](?=\s*[=+*/^×÷])|(?:(?<=[=+*/^×÷])\s*|(?<=\d))[A-Za-z](?![^\W\d_])"
)


def strip_mathematics(text: str) -> str:
    """The words of a text: no code, LaTeX, equations, symbols, nor digits of any script.

    What is left is separated by single spaces; words keep their punctuation. Number words stay.
    """
    text = _VARIABLE.sub(" ", _FORMULA.sub(" ", text))
    text = "".join(" " if unicodedata.category(c)[0] in "NS" else c for c in text)
    return " ".join(word for word in text.split() if any(map(str.isalpha, word)))


def language_of(text: str) -> str:
    """The ISO 639-1 code of the text's language, of `known_languages`.

    Empty where nothing but mathematics is left, or too little to tell (`Answer:`). A text in any
    other language gets the code of a similar one.
    """
    language, _ = _identifier().classify(strip_mathematics(text))
    return "" if language == "und" else language


def known_languages() -> frozenset[str]:
    """The codes of prompts.LANGUAGES that the identifier knows."""
    return frozenset(_identifier().labels)


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second, with its model

    # of 22 languages, a text without a known n-gram has 0.05 in each and `Answer:` 0.37 in German
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=0.4)
    identifier.set_languages(prompts.LANGUAGES.keys() & set(identifier.labels))
    return identifier
