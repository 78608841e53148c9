"""Question pairs X -> en in the GSM8KInstruct folder layout: `de-en/train.de`, `de-en/train.en`."""

import re

from absl import logging

from qalign_jax.data import inputs, prompts
from qalign_jax.data.datasets import base

_FOLDER = re.compile(r"([a-z]{2})-en")
_DATA = (
    "https://raw.githubusercontent.com/NJUNLP/QAlign/"
    "a65ee63836e41896466a1b81834d8db0deaf4324/data/gsmtrans/gsm8kinstruct_question"
)


class QuestionPairs(base.ExamplesBuilder):
    """Stage I: translate a question into English. An id is `de/17`, the language and the line.

    The languages come interleaved by their English question, so that a slice `[:n]` holds the
    same questions in every language. `reverse=True` translates English into X instead.
    """

    name = "question_pairs"
    OPTIONS = {"reverse": False}
    ABOUT = (
        "a folder with de-en/train.de, de-en/train.en and so on, like data/gsmtrans/"
        "gsm8kinstruct_question of github.com/NJUNLP/QAlign"
    )
    URLS = {
        file: f"{_DATA}/{file}"
        for code in ("bn", "th", "sw", "ja", "zh", "de", "fr", "ru", "es")
        for file in (f"{code}-en/train.{code}", f"{code}-en/train.en")
    }

    @classmethod
    def find_files(cls, config):
        folder = cls.existing(config)
        split = config.split or "train"
        found, left_out = {}, []
        for language in config.languages or _languages(folder):
            sides = [folder / f"{language}-en" / f"{split}.{side}" for side in (language, "en")]
            missing = [str(side) for side in sides if not side.exists()]
            if missing and config.languages:
                raise ValueError(
                    f"{' and '.join(missing)} missing; add it or take {language!r} out of languages"
                )
            if missing:
                left_out.append(f"{language} (no {missing[0]})")
            else:
                found[language, language], found[language, "en"] = sides
        if left_out:
            logging.warning("question pairs left out: %s", ", ".join(left_out))
        if not found:
            raise ValueError(
                f"{folder} has no folder like de-en with {split}.de and {split}.en; check the path"
            )
        return found

    @classmethod
    def read(cls, config):
        rank: dict[str, int] = {}  # of an English question, in the order of first appearance
        rows = []
        for language in (source for source, side in config.paths if side != "en"):
            source_path, english_path = (
                config.paths[language, language],
                config.paths[language, "en"],
            )
            sources, targets = (
                inputs.read_lines(source_path),
                inputs.read_lines(english_path),
            )
            if len(sources) != len(targets):
                raise ValueError(
                    f"{source_path} has {len(sources)} lines and {english_path} {len(targets)}; "
                    "line n of both must be the same question, so mend the two files"
                )
            kept = 0
            for line, (source, english) in enumerate(zip(sources, targets, strict=True), 1):
                if source.strip() and english.strip():
                    rows.append(
                        (rank.setdefault(english, len(rank)), language, line, source, english)
                    )
                    kept += 1
            base.log_dropped(len(sources) - kept, len(sources), source_path, "a side is empty")
        rows.sort(key=lambda row: row[0])  # stable: languages stay in their order
        for _, language, line, source, english in rows:
            yield pair(language, line, source, english, config.options["reverse"])


def pair(language: str, line: int | str, source: str, english: str, reverse: bool = False):
    """The example that translates a text of `language` into English, or back."""
    text, response, direction = source, english, (language, "en")
    if reverse:
        text, response, direction = english, source, ("en", language)
    return {
        "id": f"{language}/{line}",
        "instruction": prompts.translation_instruction(*direction, text),
        "response": response,
        "language": language,
    }


def _languages(folder) -> list[str]:
    names = sorted(child.name for child in folder.iterdir())
    codes = [match.group(1) for name in names if (match := _FOLDER.fullmatch(name))]
    for code in codes:
        prompts.language_name(code)
    return codes


BUILDER = QuestionPairs
