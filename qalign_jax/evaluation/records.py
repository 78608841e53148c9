"""One JSON Lines file a language: a header with the settings, then one answer a line.

Answers are appended and flushed as they finish, so an interrupted run loses none; a last line
that was cut off is dropped and its problem done again. An object store cannot append: there the
file is written whole, once a minute.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from qalign_jax import files, schema, settings
from qalign_jax.faults import storage

_REWRITE_SECONDS = 60.0
_IDS = [schema.whole(-1, 2**31 - 1)]
_TEXTS, _PROBABILITIES = [schema.TEXT], [schema.number(0, 1)]
_PREDICTION = schema.Leaf(
    "text, a number or null",
    lambda value: value is None or schema.TEXT.takes(value) or schema.NUMBER.takes(value),
)
# A line of answers: whatever of this it has. `tokens` are ids, or how many.
_ANSWER = {
    "id": schema.TEXT,
    **dict.fromkeys(("language?", "question?", "prompt?", "answer?", "output?"), schema.TEXT),
    "choices?": _TEXTS,
    "prediction?": _PREDICTION,
    "sound_prediction?": _PREDICTION,
    "correct?": schema.FLAG,
    "sound_correct?": schema.FLAG,
    "executions?": [{"status": schema.TEXT, "output": schema.TEXT}],
    "drafted?": dict.fromkeys(("rounds", "tokens", "compared", "kept"), schema.whole(0, 2**31 - 1)),
    "log_likelihoods?": [schema.NUMBER],
    "trace?": {
        **dict.fromkeys(("tokens", "base_tokens"), _IDS),
        **dict.fromkeys(("text", "base_text"), _TEXTS),
        **dict.fromkeys(("base_probability", "probability"), _PROBABILITIES),
        "moved": [schema.number(-1, 1)],
    },
}

MEANS = ("average", "non_english")  # beside a result's languages
_TABLE = {...: schema.PERCENT}
_POINTS = schema.number(-100, 100)
_INTERVAL = (_POINTS, _POINTS)
_P = schema.number(0, 1)
# One system's result on one benchmark, as evaluation/scores.py makes it.
_RESULT = {
    "intervals?": {...: _INTERVAL},
    **dict.fromkeys(("sound?", "likelihood?", "likelihood_per_character?", "executions?"), _TABLE),
    "consistency?": {...: _TABLE},
    "acceptance?": _TABLE,
    "tokens_per_round?": {...: schema.number(0, math.inf)},
    "versus?": {
        "baseline": schema.TEXT,
        ...: {"difference": _POINTS, "p": _P, "p_holm?": _P, "interval?": _INTERVAL},
    },
    ...: schema.PERCENT,
}


def by_alpha(system: str, alpha: Any) -> list[tuple[str, Any]]:
    """The names and alphas of a recipe's system: one, or one a value, like proxy_alpha0.5."""
    if isinstance(alpha, Sequence):
        return [(f"{system}_alpha{float(value)}", float(value)) for value in alpha]
    return [(system, alpha)]


def check_header(row: Any, where: str, remedy: str) -> None:
    """Raises a ValueError where the first line of a file of answers is no header."""
    schema.check(row, {"header": {"template?": schema.TEXT}}, where, remedy)


def check_answer(row: Any, where: str, remedy: str) -> None:
    """Raises a ValueError where a field of a line of answers is not what it must be."""
    schema.check(row, _ANSWER, where, remedy)
    weighed, choices = row.get("log_likelihoods", ()), row.get("choices", ())
    if weighed and len(weighed) != len(choices):
        raise ValueError(f"{where}: {len(weighed)} likelihoods of {len(choices)} choices; {remedy}")
    if len(lengths := {len(column) for column in row.get("trace", {}).values()}) > 1:
        raise ValueError(f"{where}: a trace's columns have {sorted(lengths)} entries; {remedy}")


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

    def read(self, needed: Mapping[str, Any] = {}) -> None:
        """Reads the answers of an earlier run.

        Args:
          needed: the shapes of fields that every answer must have (schema.py).

        Raises:
          ValueError: the file was made with other settings, or a line before the last is damaged.
        """
        self.answers, self.torn = {}, False
        if not self.path.exists():
            return
        self.torn = not self.path.read_bytes().endswith(b"\n")
        rows, places = [], []
        remedy = "delete the line to have its problem answered again"
        for number, row in files.read_json_lines(self.path, remedy, torn=True):
            where = f"{self.path}:{number}"
            if rows:
                check_answer(row, where, remedy)
            else:
                again = "delete the file to have its problems answered again"
                check_header(row, where, again)
            rows.append(row)
            places.append(where)
        if rows[1:] and (found := settings.differences(rows[0]["header"], self.header)):
            raise ValueError(
                f"{self.path} holds answers made with other settings: {found}. "
                "Delete that file to answer again, or write to another place"
            )
        for row, where in zip(rows[1:], places[1:], strict=True):
            schema.check(row, needed, where, remedy)
        self.answers = {row["id"]: row for row in rows[1:]}

    def open(self) -> None:
        """Makes the file ready for `add`: whole lines under the right header."""
        self._rewrite(self.answers.values())
        if not files.is_remote(self.path):
            with storage.writing(self.path):
                self._file = open(self.path, "a", encoding="utf-8", newline="\n")

    def add(self, answer: dict[str, Any]) -> None:
        """Adds an answer; on a local disk it has left this process when `add` returns."""
        self.answers[answer["id"]] = answer
        if self._file:
            with storage.writing(self.path):
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
            with storage.writing(self.path):
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
    systems = results["systems"]
    check_systems(systems, str(path), remedy)
    for name in (*systems, *(name for each in systems.values() for name in each)):
        if not files.is_name(name):  # of a folder of answers, and of a picture
            raise ValueError(f"{path}: {name!r} is no name of a system or benchmark; {remedy}")
    return results


def check_systems(systems: Any, where: str, remedy: str) -> None:
    """Raises a ValueError where the `systems` of a results.json are not what `scores` makes."""
    schema.check(systems, {...: {...: _RESULT}}, where, remedy, "systems")
    for system, results in systems.items():
        for benchmark, result in results.items():
            if not (versus := result.get("versus")):
                continue
            at = f"systems.{system}.{benchmark}"
            if benchmark not in systems.get(versus["baseline"], {}):
                raise ValueError(
                    f"{where}: {at} is compared with {versus['baseline']!r}, which has no results "
                    f"there; {remedy}"
                )
            for mean in (mean for mean in MEANS if mean in versus and mean in result):
                schema.check(versus[mean], {"interval": _INTERVAL}, where, remedy, at)
                schema.check(result, {"intervals": {mean: _INTERVAL}}, where, remedy, at)


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
