"""Rows of published text and JSON files; every error names the file and the line."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from qalign_jax import files


def existing(path: str, remedy: str = "check the path in the config") -> epath.Path:
    """The path, which must exist (local or gs://)."""
    if not path:
        raise ValueError(f"a data source was given without a path; {remedy}")
    found = epath.Path(path)
    if not found.exists():
        raise ValueError(f"{path} does not exist; {remedy}")
    return found


def read_lines(path: epath.Path) -> list[str]:
    """The lines of a text file, as `files.read_lines` splits it."""
    return [line.text for line in files.read_lines(path)]


def read_objects(path: epath.Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (row number, where, object) of a JSON Lines file or of a file with one JSON list.

    The number counts lines, or the list's items, from 1. Numbers stay as the file wrote them.
    """
    name = str(path)  # once: a gs:// path takes its time to print
    with path.open("rb") as file:
        is_list = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    for number, where, row in _list_items(path, name) if is_list else _json_lines(path, name):
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: expected a JSON object, found {json.dumps(row)[:40]}; "
                "write one object a line, or one list of objects"
            )
        yield str(number), where, row


def read_tsv(
    path: epath.Path, columns: Sequence[str], header: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yields (line number, where, row) of a file of tab-separated texts without quotes.

    A first line that holds one of the names in `header` has the columns' names; in a file without
    one they are `columns`. A row may lack the last columns.
    """
    name = str(path)
    for line in files.read_lines(path):
        fields = line.text.split("\t")
        if line.number == 1 and set(fields) & set(header):
            columns = fields
            continue
        where = f"{name}:{line.number}"
        if len(fields) > len(columns):
            raise ValueError(
                f"{where}: {len(fields)} columns, but there are {len(columns)}, "
                f"{' '.join(columns)}; mend the line"
            )
        yield str(line.number), where, dict(zip(columns, fields, strict=False))


def read_parallel(
    paths: Mapping[str, epath.Path], read: Callable[[epath.Path], Iterator[Any]]
) -> Iterator[dict[str, Any]]:
    """Yields {key: row} of files that are parallel row by row, of which none may end early."""
    for rows in itertools.zip_longest(*map(read, paths.values())):
        found = dict(zip(paths, rows, strict=True))
        ended = [str(paths[key]) for key, row in found.items() if row is None]
        if ended:
            longer = next(str(paths[key]) for key, row in found.items() if row is not None)
            raise ValueError(
                f"{ended[0]} has fewer lines than {longer}; line n of both must be the same text, "
                "so mend the two files"
            )
        yield found


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


_AS_WRITTEN: dict[str, Any] = {"parse_int": str, "parse_float": str, "parse_constant": str}


def _json_lines(path: epath.Path, name: str) -> Iterator[tuple[int, str, Any]]:
    for number, row in files.read_json_lines(path, "write one JSON object a line", **_AS_WRITTEN):
        yield number, f"{name}:{number}", row


def _list_items(path: epath.Path, name: str) -> Iterator[tuple[int, str, Any]]:
    remedy = "write one JSON list of objects, or one object a line"
    items = files.parse_json("\n".join(read_lines(path)), name, remedy, **_AS_WRITTEN)
    for number, item in enumerate(items, 1):
        yield number, f"{name}: item {number}", item
