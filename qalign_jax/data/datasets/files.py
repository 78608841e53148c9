"""Text and JSON files in, rows out; every complaint names the file and the line."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath


def existing(path: str, remedy: str = "check the path in the config") -> epath.Path:
    """The path, which must be there (local or gs://)."""
    if not path:
        raise ValueError(f"a data source was given without a path; {remedy}")
    found = epath.Path(path)
    if not found.exists():
        raise ValueError(f"{path} does not exist; {remedy}")
    return found


def sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: epath.Path) -> str:
    """The file as UTF-8 text, without a byte order mark at its start."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; check the path in the config")
    data = path.read_bytes()
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); convert the file, "
            "for example with iconv -t utf-8"
        ) from None


def read_lines(path: epath.Path) -> list[str]:
    """The lines of a text file, split on line feeds alone.

    `str.splitlines` would also split on U+2028, U+0085 and others, which occur inside questions.
    """
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_objects(path: epath.Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (row number, where, object) of a JSON Lines file or of a file with one JSON list.

    The number counts lines, or the list's items, from 1. Numbers stay as the file wrote them.
    """
    if read_text(path).lstrip().startswith("["):
        rows = _list_items(path)
    else:
        rows = _json_lines(path)
    for number, where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: expected a JSON object, found {type(row).__name__}; "
                "write one object a line, or one list of objects"
            )
        yield str(number), where, row


def text_field(
    row: Mapping[str, Any], names: Sequence[str], where: str, default: str | None = None
) -> str:
    """The value of the first of `names` that the row has."""
    for name in names:
        if name in row:
            if not isinstance(row[name], str):
                raise ValueError(
                    f"{where}: {name!r} must be text, found {json.dumps(row[name])[:60]}; "
                    "write it as a JSON string"
                )
            return row[name]
    if default is not None:
        return default
    raise ValueError(
        f"{where}: no key {' or '.join(map(repr, names))}; "
        f"the row's keys are {', '.join(map(repr, row)) or 'none'}"
    )


def filled(text: str, what: str, where: str) -> str:
    """The text, which must hold more than white space."""
    if not text.strip():
        raise ValueError(f"{where}: the {what} is empty; fill it in or delete the row")
    return text


def _json_lines(path: epath.Path) -> Iterator[tuple[int, str, Any]]:
    name = str(path)  # once: a gs:// path takes its time to print
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield number, where, _parse(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: malformed JSON ({error.msg} at column {error.colno}); "
                "write one JSON object a line"
            ) from None


def _list_items(path: epath.Path) -> Iterator[tuple[int, str, Any]]:
    try:
        items = _parse(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: malformed JSON ({error.msg} at column {error.colno}); "
            "write one JSON list of objects, or one object a line"
        ) from None
    name = str(path)
    for number, item in enumerate(items, 1):
        yield number, f"{name}: item {number}", item


def _parse(text: str) -> Any:
    return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
