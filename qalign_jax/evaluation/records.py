"""One JSON Lines file a language: a header that says what shaped it, then one answer a line.

Answers are appended and flushed as they finish, so an interrupted run loses none; a last line
that was cut off is dropped and its problem done again. An object store cannot append: there the
file is written whole, once a minute.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

_REWRITE_SECONDS = 60.0


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a file's content at once: a reader sees the old text or the new, never a part."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_remote(path):
        path.write_text(text, encoding="utf-8")
        return
    aside = path.parent / f"{path.name}.tmp{os.getpid()}"
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, str, bool]]:
    """Yields (number, line, whether it ends in a newline), blank lines left out.

    Lines end at "\\n" only: model outputs and questions hold U+2028 and its like.
    """
    lines = epath.Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, start=1):
        ended = number < len(lines)
        try:
            text = line.decode("utf-8", errors="strict" if ended else "replace")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not UTF-8 at byte {error.start} of the line; "
                "save the file as UTF-8"
            ) from error
        if text.strip():
            yield number, text, ended


class AnswerFile:
    """The answers of one system to one language's problems, by problem id.

    `check` the file before any decoding; `open` it, `add` answers as they finish, `close` it.
    """

    def __init__(self, path: str | os.PathLike, header: Mapping[str, Any]):
        self.path = epath.Path(path)
        self.header = json.loads(json.dumps(header, ensure_ascii=False))
        self.answers: dict[str, dict[str, Any]] = {}
        self.torn = False  # the last line was cut off
        self._file = None
        self._dirty = False
        self._written = 0.0

    def read(self) -> None:
        """Takes over the answers that are there.

        Raises:
          ValueError: the file was made with other settings, or a line inside it is damaged.
        """
        self.answers, self.torn = {}, False
        if not self.path.exists():
            return
        rows = []
        for number, line, ended in read_lines(self.path):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if not ended:
                    self.torn = True
                    break
                raise ValueError(
                    f"{self.path}:{number}: not JSON ({error.msg}); delete the line to have its "
                    "problem answered again"
                ) from error
            if not isinstance(row, dict) or not ("header" in row if not rows else "id" in row):
                raise ValueError(
                    f"{self.path}:{number}: expected {'an answer' if rows else 'the header'}; "
                    "delete the file to have its problems answered again"
                )
            rows.append(row)
        if rows[1:]:
            self._check_header(rows[0]["header"])
        self.answers = {row["id"]: row for row in rows[1:]}

    def open(self) -> None:
        """Makes the file ready for `add`: whole lines under the right header."""
        self._rewrite(self.answers.values())
        if not _is_remote(self.path):
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
        order = [identity for identity in order if identity in self.answers]
        if order:
            first = set(order)
            rest = [identity for identity in self.answers if identity not in first]
            self._rewrite(self.answers[identity] for identity in order + rest)
        elif self._dirty:
            self._rewrite(self.answers.values())

    def _rewrite(self, answers: Iterable[dict[str, Any]]) -> None:
        lines = [_line({"header": self.header}), *map(_line, answers)]
        write_text(self.path, "".join(lines))
        self._dirty, self.torn, self._written = False, False, time.monotonic()

    def _check_header(self, found: Any) -> None:
        there, asked = _flat(found), _flat(self.header)
        absent = "(absent)"
        differing = [
            f"{key} was {there.get(key, absent)}, is {asked.get(key, absent)}"
            for key in sorted(there.keys() | asked.keys())
            if there.get(key, absent) != asked.get(key, absent)
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds answers made with other settings: {'; '.join(differing)}. "
                "Delete that file to answer again, or take another workdir"
            )


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        flat = {}
        for key, inner in value.items():
            flat |= _flat(inner, f"{name}.{key}" if name else key)
        return flat
    return {name: json.dumps(value, ensure_ascii=False)}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _is_remote(path: os.PathLike) -> bool:
    return "://" in os.fspath(path)
