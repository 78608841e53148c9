"""Reading and writing whole files, local or in an object store (gs://)."""

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from etils import epath


class Line(NamedTuple):
    """A line of a text file, counted from 1; `ended` tells whether a newline stands behind it."""

    number: int
    text: str
    ended: bool


def is_remote(path: str | os.PathLike) -> bool:
    """Whether the path names an object store, which knows whole files only."""
    return "://" in os.fspath(path)


def absolute(path: str | os.PathLike) -> epath.Path:
    """The path from the root, `~` expanded; a remote path stays as it is."""
    path = epath.Path(path)
    return path if is_remote(path) else epath.Path(os.path.abspath(path.expanduser()))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Replaces a file's content at once: a reader sees the old content or the new, never a part."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_bytes(content)
        return
    aside = path.parent / f".{path.name}.{os.getpid()}"
    aside.write_bytes(content)
    aside.replace(path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a file's content at once by text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, content: Any, indent: int = 1) -> None:
    """Replaces a file's content at once by one JSON value."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def write_json_lines(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Replaces a file's content at once by one JSON value a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: str | os.PathLike, remedy: str) -> Any:
    """The JSON value in a file.

    Raises:
      ValueError: the file is no JSON; `remedy` says what to do.
    """
    try:
        return json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: not JSON ({error}); {remedy}") from None


def read_object(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: the file is no JSON, or another value; `remedy` says what to do.
    """
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise ValueError(
            f"{os.fspath(path)}: expected an object, found {type(value).__name__}; {remedy}"
        )
    return value


def read_lines(path: str | os.PathLike, *, torn: bool = False) -> Iterator[Line]:
    """Yields the lines of a text file, blank ones too, without "\\r" and byte order mark.

    Lines end at "\\n" only: questions and answers hold U+2028 and other characters at which
    `str.splitlines` splits.

    Args:
      torn: whether a last line without a newline may be cut off inside a character, as a process
        that was killed leaves it; U+FFFD stands there then.

    Raises:
      ValueError: naming the line that is not UTF-8.
    """
    with epath.Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            ended = line.endswith(b"\n")
            line = line.removesuffix(b"\n")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not ended and not line:
                return
            try:
                text = line.decode("utf-8", errors="replace" if torn and not ended else "strict")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{os.fspath(path)}:{number}: not UTF-8 (byte 0x{line[error.start]:02x}); "
                    "convert the file, for example with iconv -t utf-8"
                ) from None
            yield Line(number, text.removesuffix("\r"), ended)


def read_json_lines(
    path: str | os.PathLike, remedy: str, *, torn: bool = False, **options: Any
) -> Iterator[tuple[int, Any]]:
    """Yields (line number, value) of a JSON Lines file, blank lines left out.

    Args:
      remedy: what to do about a line that is no JSON.
      torn: whether a last line without a newline may be cut off; it is left out then.
      options: for json.loads.

    Raises:
      ValueError: naming the line that is not JSON or not UTF-8.
    """
    for number, text, ended in read_lines(path, torn=torn):
        if not text.strip():
            continue
        try:
            yield number, json.loads(text, **options)
        except (RecursionError, ValueError) as error:
            if not isinstance(error, json.JSONDecodeError):
                reason = f"{error}".split(";")[0]
                raise ValueError(f"{os.fspath(path)}:{number}: {reason}; {remedy}") from None
            if torn and not ended:
                return
            raise ValueError(
                f"{os.fspath(path)}:{number}: not JSON ({error.msg} at column {error.colno}); "
                f"{remedy}"
            ) from None
