"""The base of the benchmarks: languages, answer length, and loading of problems."""

import collections
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from qalign_jax.data.examples import check_source, load_examples
from qalign_jax.evaluation.protocols import number


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """`languages` may be asked for; those in `averaged` are the default and make the average.

    `choices` are those of multiple choice where a line that is scored does not name its own.
    `builder` is its data set, an ExamplesBuilder of benchmark keys; `protocol` the module of
    evaluation/protocols that judges the answers.
    """

    name: str
    languages: tuple[str, ...]
    averaged: tuple[str, ...]
    max_new_tokens: int
    builder: type
    protocol: ModuleType = number
    choices: tuple[str, ...] = ()

    def load(
        self,
        data_dir: str | os.PathLike,
        path: str = "",
        languages: Sequence[str] = (),
        limit: int = 0,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """The problems as dicts of id, language, question and answer, language by language.

        Those of multiple choice have `choices` too, the texts that may be answered.

        `limit` above 0 keeps the first so many problems a language; `options` go to the data set.

        Raises:
          ValueError: a language that the benchmark does not have, or unreadable files.
        """
        if limit < 0:
            raise ValueError(f"limit={limit}: give 0 for all problems or a number above 0")
        source = self._source(path, languages, options)
        examples = load_examples(source, data_dir, self.builder)
        by_language = collections.defaultdict(list)
        for index in range(len(examples)):
            problem: dict[str, Any] = examples[index]
            if "choices" in problem:
                problem["choices"] = json.loads(problem["choices"])
            by_language[problem["language"]].append(problem)
        return [
            problem
            for language in source["languages"]
            for problem in by_language[language][: limit or None]
        ]

    def check(self, path: str, languages: Sequence[str], limit: int = 0, **options: Any) -> None:
        """Raises a ValueError for languages, files and options that there are not (see `load`)."""
        check_source(self._source(path, languages, options), self.builder)

    def _source(self, path: str, languages: Sequence[str], options: Mapping[str, Any]) -> dict:
        languages = tuple(languages) or self.averaged
        self.check_languages(languages)
        if len(set(languages)) < len(languages):
            raise ValueError(f"languages={languages} names one twice; name each once")
        return {"name": self.name, "path": path, "languages": languages, **options}

    def check_languages(self, languages: Sequence[str]) -> None:
        """Raises ValueError for languages that the benchmark does not have."""
        if unknown := [language for language in languages if language not in self.languages]:
            raise ValueError(
                f"{self.name} has no language {', '.join(map(repr, unknown))}; "
                f"it has {' '.join(self.languages)}"
            )
