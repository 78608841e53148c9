"""One JSON Lines file a language: a header with the settings, then one answer a line.

Answers are appended and flushed as they finish, so an interrupted run loses none; a last line
that was cut off is dropped and its problem done again. An object store cannot append: there the
file is written whole, once a minute.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from qalign_jax import files, settings

_REWRITE_SECONDS = 60.0


class AnswerFile:
    """The answers of one system to one language's problems, by problem id.

    `read` the file before any decoding; `open` it, `add` answers as they finish, `close` it.
    """

    def __init__(self, path: str | os.PathLike, header: Mapping[str, Any]):
        self.path = epath.Path(path)
        self.header = settings.as_json(header)
        self.answers: dict[str, dict[str, Any]] = {}
        self.torn = False  # no newline at the end: the last line may be cut off
        self._file = None
        self._dirty = False
        self._written = 0.0

    def read(self) -> None:
        """Reads the answers of an earlier run.

        Raises:
          ValueError: the file was made with other settings, or a line before the last is damaged.
        """
        self.answers, self.torn = {}, False
        if not self.path.exists():
            return
        self.torn = not self.path.read_bytes().endswith(b"\n")
        rows = []
        remedy = "delete the line to have its problem answered again"
        for number, row in files.read_json_lines(self.path, remedy, torn=True):
            if not isinstance(row, dict) or not ("header" in row if not rows else "id" in row):
                raise ValueError(
                    f"{self.path}:{number}: expected {'an answer' if rows else 'the header'}; "
                    "delete the file to have its problems answered again"
                )
            rows.append(row)
        if rows[1:] and (found := settings.differences(rows[0]["header"], self.header)):
            raise ValueError(
                f"{self.path} holds answers made with other settings: {found}. "
                "Delete that file to answer again, or take another workdir"
            )
        self.answers = {row["id"]: row for row in rows[1:]}

    def open(self) -> None:
        """Makes the file ready for `add`: whole lines under the right header."""
        self._rewrite(self.answers.values())
        if not files.is_remote(self.path):
            self._file = open(self.path, "a", encoding="utf-8", newline="\n")

    def add(self, answer: dict[str, Any]) -> None:
        """Adds an answer; on a local disk it has left this process when `add` returns."""
        self.answers[answer["id"]] = answer
        if self._file:
            self._file.write(_line(answer))
            self._file.flush()
            return
        self._dirty = True
        if time.monotonic() - self._written > _REWRITE_SECONDS:
            self._rewrite(self.answers.values())

    def close(self, order: Iterable[str] = ()) -> None:
        """Closes the file; with `order`, rewrites it with those ids first, in that order.

        Answers to problems that were not asked this time (a smaller `limit`) are kept behind.
        """
        if self._file:
            self._file.close()
            self._file = None
        order = [problem_id for problem_id in order if problem_id in self.answers]
        if order:
            first = set(order)
            rest = [problem_id for problem_id in self.answers if problem_id not in first]
            self._rewrite(self.answers[problem_id] for problem_id in order + rest)
        elif self._dirty:
            self._rewrite(self.answers.values())

    def _rewrite(self, answers: Iterable[dict[str, Any]]) -> None:
        lines = [_line({"header": self.header}), *map(_line, answers)]
        files.write_text(self.path, "".join(lines))
        self._dirty, self.torn, self._written = False, False, time.monotonic()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_results(path: epath.Path, remedy: str) -> dict[str, Any]:
    """A results.json of an evaluation: {"systems": {system: {benchmark: result}}}.

    Raises:
      ValueError: there is none, or it is damaged; with the remedy.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing; {remedy}")
    results = files.read_json(path, remedy)
    if not isinstance(results, dict) or not isinstance(results.get("systems"), dict):
        raise ValueError(f"{path} has no systems; {remedy}")
    return results


def save_results(
    path: str | os.PathLike, systems: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Merges `{system: {benchmark: result}}` into a stage's results.json; returns all of it."""
    path = epath.Path(path)
    results: dict[str, Any] = {"systems": {}}
    if path.exists():
        remedy = "it is no results file; delete it: results are made again from the answers"
        results = read_results(path, remedy)
    for system, benchmarks in systems.items():
        results["systems"].setdefault(system, {}).update(benchmarks)
    files.write_json(path, results, indent=2)
    return results
