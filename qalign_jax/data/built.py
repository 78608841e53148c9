"""Folders that are built once and then only read: whole under their name, or not there."""

import contextlib
import functools
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator

from absl import logging

from qalign_jax.faults import lock, storage
from qalign_jax.faults.checksums import SUMS, Damaged, check_sums, write_sums

_ASIDE = ".building-"  # folders under construction are named so, their locks with .lock behind
_OLD_S = 86400  # earlier versions held no lock: their folders are left over when a day old


def ensure(final: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Makes sure that the folder `final` holds what `write` puts into the folder it is given.

    It is written aside, with the checksums of its files, and then gets its name, by one process
    while others wait for it. Every process compares it with its checksums when it opens it first,
    and again when a file's size or time has changed. A folder that is damaged or has no
    checksums, as those of older versions, is written again.

    Raises:
      StorageFailed: there is no space; nothing is left half written.
      ValueError: the folder may not be written.
    """
    if final.exists() and not _fault(final):
        return
    with storage.writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        for folder in final.parents[:2]:  # earlier versions left some a level higher
            _remove_leftovers(folder)
        with _alone(aside := final.parent / f"{_ASIDE}{final.name}"):
            if final.exists():
                if not (fault := _fault(final)):
                    return  # another process has written it
                logging.warning("%s. It is built again", fault)
                shutil.rmtree(final)
            aside.mkdir()
            write(aside)
            write_sums(aside)
            aside.rename(final)


def _fault(folder: pathlib.Path) -> str:
    """What is wrong with a folder; "" where it is as it was written."""
    try:
        if not (folder / SUMS).exists():
            return f"{folder} has no {SUMS}: an older version wrote it, or it is damaged"
        _check(folder, _state(folder))
    except (Damaged, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        return str(error)
    return ""


@functools.lru_cache
def _check(folder: pathlib.Path, state: tuple) -> None:
    named = (folder / SUMS).read_bytes().count(b"\n")
    if named != len(state) - 1:
        raise Damaged(f"{folder} is damaged: {len(state) - 1} files, {SUMS} names {named}")
    if (size := sum(size for _, size, _, _ in state)) > 1e9:
        logging.info("checking %.1f GB in %s", size / 1e9, folder)
    check_sums(folder)


def _state(folder: pathlib.Path) -> tuple:
    """Name, size, time and inode of all files: what changes when they do."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(found)


@contextlib.contextmanager
def _alone(aside: pathlib.Path, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a folder under construction; the folder is gone before and after.

    Raises:
      lock.Held: another process holds it, and this one is not to wait.
    """
    with lock.hold(f"{aside}.lock", wait=wait):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what builders that died have left in a folder, and nothing of living ones."""
    for aside in folder.glob(f"{_ASIDE}*"):
        if aside.suffix == ".lock":
            aside = aside.with_suffix("")
        elif not aside.with_name(f"{aside.name}.lock").exists():
            try:
                if time.time() - aside.stat().st_mtime < _OLD_S:
                    continue
            except FileNotFoundError:
                continue
        with contextlib.suppress(lock.Held), _alone(aside, wait=False):
            logging.info("removing %s, which a builder that died has left", aside)
