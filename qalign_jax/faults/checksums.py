"""SHA256SUMS in a folder: the SHA-256 of every file, in the format of the command sha256sum."""

import concurrent.futures
import hashlib
import os
from collections.abc import Collection

from etils import epath

SUMS = "SHA256SUMS"
_BLOCK = 1 << 20
_THREADS = 8  # hashing leaves Python's lock, and object stores are slow to begin


class Damaged(ValueError):
    """Stored bytes are not those that were written; the message names the file."""


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file in hexadecimal, read a block at a time."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_sums(folder: str | os.PathLike, besides: Collection[str] = ()) -> None:
    """Writes SHA256SUMS of the files in a folder and those below it, but of those `besides`."""
    folder = epath.Path(folder)
    names = sorted(name for name in _names(folder) if name.split("/")[0] not in besides)
    text = "".join(f"{found}  {name}\n" for name, found in _sums(folder, names))
    (folder / SUMS).write_text(text)


def check_sums(folder: str | os.PathLike, needed: Collection[str] = ()) -> bool:
    """Whether the folder has SHA256SUMS; if so, every file in it was read and is as written.

    Files that SHA256SUMS does not name are not looked at.

    Args:
      needed: files that it must name.

    Raises:
      Damaged: naming a file that is missing or differs, or SHA256SUMS itself.
    """
    folder = epath.Path(folder)
    if not (folder / SUMS).exists():
        return False
    expected = _read(folder)
    if unnamed := sorted(set(needed) - expected.keys()):
        raise Damaged(f"{folder / SUMS} is damaged: it does not name {unnamed[0]}")
    try:
        for name, found in _sums(folder, list(expected)):
            if found != expected[name]:
                raise Damaged(f"{folder / name} is damaged: its bytes are not those in {SUMS}")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Damaged(f"{folder / SUMS} names a file that is missing ({error})") from None
    return True


def _is_part(name: str) -> bool:
    """Whether a text may stand between the slashes of a path below a folder."""
    return name not in ("", ".", "..") and "\0" not in name and len(name.encode()) < 256


def _names(folder: epath.Path, prefix: str = ""):
    for path in folder.iterdir():
        if path.is_dir():
            yield from _names(path, f"{prefix}{path.name}/")
        elif prefix + path.name != SUMS:
            yield prefix + path.name


def _sums(folder: epath.Path, names: list[str]):
    """Yields (name, SHA-256) in the order of the names."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        yield from zip(names, pool.map(lambda name: sha256(folder / name), names), strict=True)


def _read(folder: epath.Path) -> dict[str, str]:
    expected = {}
    try:
        *lines, rest = (folder / SUMS).read_text(encoding="utf-8").split("\n")
        if rest:
            raise ValueError
        for line in lines:
            found, name = line.split("  ", 1)
            if len(bytes.fromhex(found)) != 32 or not all(map(_is_part, name.split("/"))):
                raise ValueError
            expected[name] = found
    except ValueError:
        raise Damaged(f"{folder / SUMS} is damaged: not lines of SHA-256 and name") from None
    return expected
