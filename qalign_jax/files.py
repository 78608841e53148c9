"""Reading and writing whole files, local or in an object store (gs://)."""

import json
import os
import random
import re
import time
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, NoReturn

from absl import logging
from etils import epath
from fsspec.config import conf

from qalign_jax.faults import storage

# Other hosts and TensorStore write where gcsfs has listed.
conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)

# How long a write to an object store is tried. gcsfs tries for half a minute itself.
RETRY_S = 600.0
DEEPEST = 64  # levels of a JSON value; a reader's own recursion must not meet Python's limit
LARGEST = 1 << 28  # bytes of a file that is one JSON value
LONGEST_NAME = 200  # bytes of a file's name; file systems take 255, with what is put around it

# What a text must hold to have a value that JSON's parser takes and a reader does not: half a
# surrogate pair, a number that is no float, NaN. Texts without are parsed and not looked through.
_SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|\d{40}|[eE]\+?\d{3}|NaN|Infinity")
_NAME = re.compile(r"[\w-][\w.-]*")


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
    """Replaces a file's content at once: a reader sees the old content or the new, never a part.

    Raises:
      StorageFailed, ValueError: as of storage.writing; an object store has failed for RETRY_S.
    """
    path = epath.Path(path)
    if is_remote(path):
        _write_object(path, content)
        return
    with storage.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.parent / f".{path.name}.{os.getpid()}"
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or a machine's crash might leave the new name empty
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _write_object(path: epath.Path, content: bytes) -> None:
    """Writes an object, again with ever longer pauses while the store says that it may help."""
    from gcsfs.retry import is_retriable

    began, pause = time.monotonic(), 1.0
    while True:
        try:
            with storage.writing(path):
                path.write_bytes(content)
            return
        except storage.StorageFailed as error:
            seconds = time.monotonic() - began
            if not is_retriable(error.__cause__) or seconds + pause > RETRY_S:
                raise
            reason = storage.failure(error.__cause__)
            logging.warning("%s: %s; again in %.0f s", os.fspath(path), reason, pause)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 60.0)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a file's content at once by text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, content: Any, indent: int = 1) -> None:
    """Replaces a file's content at once by one JSON value."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def write_json_lines(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Replaces a file's content at once by one JSON value a line."""
    write_text(path, "".join(map(json_line, rows)))


def json_line(value: Any) -> str:
    """A JSON value as a line of a JSON Lines file."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def is_name(text: Any) -> bool:
    """Whether a text may be the name of a file or a folder: of a system, a stage, a language.

    Letters and digits of any script, `_`, `-` and, but for the first, `.`: no path, nothing hidden,
    no mark of direction; not longer than file systems take, and the same text on all of them.
    """
    return (
        isinstance(text, str)
        and _NAME.fullmatch(text) is not None
        and len(text.encode()) <= LONGEST_NAME
        and unicodedata.is_normalized("NFKC", text)
    )


def check_output(path: str | os.PathLike, flag: str) -> None:
    """Raises a ValueError where no file can be written to the path that a flag gives."""
    text = os.fspath(path)
    if is_remote(text):
        return
    name = os.path.basename(text)
    if "\0" in text or not name or len(os.fsencode(name)) > LONGEST_NAME:
        raise ValueError(f"--{flag}={text!r} is no file's name, or too long for one")
    if os.path.isdir(text):
        raise ValueError(f"--{flag}={text} is a folder; name a file")
    storage.check_folder(os.path.dirname(os.path.abspath(text)), f"the folder of --{flag}")


def parse_json(text: str | bytes, where: str, remedy: str, **options: Any) -> Any:
    """The value of a JSON text, of which readers need fear nothing.

    Args:
      where: names the text's file in errors.
      remedy: what to do about a text that is no JSON.
      options: for json.loads; they may take numbers as they are written.

    Raises:
      ValueError: no JSON, which knows no NaN and no Infinity; more than DEEPEST levels; a number
        that no float holds; half a surrogate pair, which cannot be written as UTF-8.
    """
    try:
        if isinstance(text, bytes):
            text = text.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        options = {"parse_constant": _refuse_constant, **options}
        value = json.loads(text, **options)
        if _SUSPECT.search(text) or text.count("[") + text.count("{") > DEEPEST:
            _check_value(value)
        return value
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if error.lineno > 1 else ""
        reason = f"not JSON ({error.msg} at column {error.colno})"
        raise ValueError(f"{where}{line}: {reason}; {remedy}") from None
    except RecursionError:
        reason = _TOO_DEEP
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
    except ValueError as error:
        # Python's own, of an integer of 4,300 digits, is for programmers
        reason = _TOO_LARGE if "digits" in str(error) else str(error)
    raise ValueError(f"{where}: {reason}; {remedy}") from None


def read_json(path: str | os.PathLike, remedy: str, **options: Any) -> Any:
    """The JSON value in a file; arguments as of `parse_json`.

    Raises:
      ValueError: as `parse_json`; the path is a folder, or the file is larger than LARGEST.
    """
    path, name = epath.Path(path), os.fspath(path)
    if path.is_dir():
        raise ValueError(f"{name}: a folder, where a file is expected; {remedy}")
    if (size := path.stat().length) > LARGEST:
        raise ValueError(f"{name}: {size:,} bytes, at most {LARGEST:,} are read; {remedy}")
    return parse_json(path.read_bytes(), name, remedy, **options)


def read_object(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: as `read_json`, or the value is another.
    """
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        found = json.dumps(value, ensure_ascii=False)[:40]
        raise ValueError(f"{os.fspath(path)}: expected an object, found {found}; {remedy}")
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
      options: as of `parse_json`.

    Raises:
      ValueError: naming the line that is not UTF-8, or as `parse_json`.
    """
    name = os.fspath(path)
    for number, text, ended in read_lines(path, torn=torn):
        if not text.strip():
            continue
        try:
            yield number, parse_json(text, f"{name}:{number}", remedy, **options)
        except ValueError:
            if torn and not ended:
                return
            raise


_TOO_LARGE = "a number too large"
_TOO_DEEP = f"nested in more than {DEEPEST} levels"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check_value(value: Any) -> None:
    """Raises a ValueError that says what a reader of a parsed value could not take."""
    level, depth = [value], 0
    while level:
        below = []
        for each in level:
            if isinstance(each, dict):
                below += [*each, *each.values()]
            elif isinstance(each, list):
                below += each
            elif isinstance(each, str):
                _check_text(each)
            elif isinstance(each, (int, float)) and not -1e39 < each < 1e39:
                raise ValueError(_TOO_LARGE)
        if depth == DEEPEST and any(isinstance(each, (dict, list)) for each in level):
            raise ValueError(_TOO_DEEP)
        level, depth = below, depth + 1


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair (\\u{ord(text[error.start]):x})") from None
