"""Storage that is full, that fails or that may not be written: one line that says so."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

STATUS = 74  # of a command that ends so; EX_IOERR in sysexits.h

# A full disk, a full quota, a limit on the size of files, a disk that is broken.
FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_WORDS = {os.strerror(number): os.strerror(number) for number in FAILURES}
_WORDS["Not enough disk space"] = os.strerror(errno.ENOSPC)
# The packages that speak with object stores; some of their errors are no OSError.
_CLIENTS = (
    *("aiohttp.", "gcsfs.", "requests.", "google.api_core.", "google.auth.", "google.cloud."),
    "google.resumable_media.",
)
# TensorStore's errors in Orbax: a status, and the object in the text. What it creates is there
# already when it repeats a write whose answer was lost.
_TENSORSTORE = re.compile(
    "(ABORTED|ALREADY_EXISTS|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|"
    "RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN): .*gs://"
)
# Not writable for this user, or not by the calls that are needed (locks, on some network disks).
_REFUSALS = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS),
)


class StorageFailed(OSError):
    """Something could not be written or read; the message names it and says what to do."""


def failure(error: BaseException | None) -> str:
    """The system's words for storage that is full or fails, of an error or of one behind it.

    "" where it is about something else. Orbax raises errors of other types that quote the
    system's words, TFDS one with words of its own; of an object store it is the client's.
    """
    for _ in range(50):  # the errors behind an error may form a circle
        if error is None:
            break
        modules = [f"{kind.__module__}." for kind in type(error).__mro__]
        forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden: ")  # by gcsfs
        if (
            any(module.startswith(_CLIENTS) for module in modules)
            or forbidden
            or _TENSORSTORE.match(str(error))
        ):
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"the object store fails ({reason})"
        if isinstance(error, OSError) and error.errno in FAILURES:
            return os.strerror(error.errno)
        for words, meaning in _WORDS.items():
            if words in str(error):
                return meaning
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns the errors of storage, while `path` is written, into ones that a user understands.

    Raises:
      StorageFailed: the disk or a quota is full, or the disk fails.
      ValueError: the path may not be written, as in another user's folder.
    """
    try:
        yield
    except StorageFailed:
        raise  # names a file already
    except Exception as error:
        where = getattr(error, "filename", None) or os.fspath(path)
        if words := failure(error):
            raise StorageFailed(
                f"{where} could not be written: {words}. What was finished before is whole; start "
                "the same command again when there is space or it answers"
            ) from error
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            raise ValueError(
                f"{where}: {os.strerror(error.errno)}; name another place, or give this user the "
                "right to read and write there"
            ) from error
        raise


def check_folder(path: str | os.PathLike, key: str) -> None:
    """Raises a ValueError where a local path is no folder, or none that can be made and written.

    `key` names the setting that the path comes from.
    """
    path = os.path.abspath(os.path.expanduser(path))
    found = path
    while not os.path.lexists(found):
        found = os.path.dirname(found)
    if not os.path.isdir(found):
        raise ValueError(f"{key}={path}: {found} is not a folder; name another place")
    if not os.access(found, os.W_OK | os.X_OK):
        raise ValueError(
            f"{key}={path}: {found} cannot be written; name another folder, or give this user the "
            "right to write there"
        )
