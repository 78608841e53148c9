"""One process at a time in a folder, local or on gs://: others are refused, and told who is there.

A local lock is the kernel's and ends with its process. On gs:// it is an object that its owner
writes again every HEARTBEAT_S, and that others may take over once it has not changed for
TAKEOVER_S. No clocks are compared: the one who waits counts the seconds itself.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, NoReturn

from absl import logging

from qalign_jax.faults import storage

HEARTBEAT_S = 10.0
TAKEOVER_S = 60.0
# Some network disks know no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class Held(ValueError):
    """Another process holds the lock; the message names its host, number and start."""


@contextlib.contextmanager
def hold(path: str | os.PathLike, remedy: str = "", wait: bool = False) -> Iterator[None]:
    """Holds the lock `path`, a file of its own, while the context is open; then removes it.

    A lock that a dead process has left is taken over. Where another process takes over this one's,
    which it can on gs:// alone and when this one was not heard of, this process ends.

    Args:
      remedy: what to do where another process holds it.
      wait: for the other process to end, instead; of a local lock.

    Raises:
      Held: another process holds it.
      StorageFailed, ValueError: the lock cannot be written.
    """
    name = os.fspath(path)
    if name.startswith("gs://"):
        with _hold_object(name, remedy):
            yield
    elif "://" in name:
        raise ValueError(f"{name}: only local folders and gs:// can be locked")
    else:
        with _hold_file(name, remedy, wait):
            yield


@contextlib.contextmanager
def _hold_file(path: str, remedy: str, wait: bool) -> Iterator[None]:
    while True:
        with storage.writing(path):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
                raise ValueError(f"{path} is not a file, and a lock cannot be; remove it")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path, remedy, wait)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logging.warning("%s: no locks on this disk; see that nobody else starts it", path)
                break
            os.close(descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        if _is_same(descriptor, path):
            break
        os.close(descriptor)  # its owner has removed it in between
    try:
        if before := os.pread(descriptor, 1 << 16, 0):
            _log_takeover(path, before)
        with storage.writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _owner(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_same(descriptor, path):
                os.unlink(path)
        os.close(descriptor)  # the kernel unlocks


def _lock(descriptor: int, path: str, remedy: str, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 1 << 16, 0)
        if not wait:
            _refuse(path, owner, remedy)
        logging.info("%s: waiting for %s", path, _describe(owner))
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_same(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _hold_object(path: str, remedy: str) -> Iterator[None]:
    with storage.writing(path):
        lock = _Object(path)
        try:
            lock.take(remedy)
        except BaseException:
            lock.close()
            raise
    ends = threading.Event()
    heart = threading.Thread(target=_beat, args=(lock, ends), daemon=True)
    heart.start()
    try:
        yield
    finally:
        ends.set()
        heart.join()
        with contextlib.suppress(OSError), storage.writing(path):  # another start waits for it
            lock.release()
        lock.close()


def _beat(lock: "_Object", ends: threading.Event) -> None:
    while not ends.wait(HEARTBEAT_S):
        try:
            with storage.writing(lock.path):
                owner = lock.refresh()
        except OSError as error:
            # the lock is held until another takes over
            logging.warning("%s: %s", lock.path, storage.failure(error))
            continue
        if owner is not None:
            reason = f"{_describe(owner)} has taken over, as this one was not heard of"
            print(f"error: {lock.path}: {reason}; it ends here", file=sys.stderr, flush=True)
            os._exit(2)  # at once: two must not write


class _Object:
    """An object of a bucket; its generation changes with each write.

    A write names the generation that it replaces. One whose answer was lost is repeated, and
    refused then; the token in the content tells that the object is this one's all the same.
    """

    def __init__(self, path: str):
        from google.cloud.storage import Client  # comes with gcsfs

        self.path = path
        bucket, _, self._name = path.removeprefix("gs://").partition("/")
        client = Client(project=None)  # a bucket's name needs none
        self._bucket, self.close = client.bucket(bucket), client.close
        self._token = uuid.uuid4().hex
        self._content = _owner(token=self._token)
        self._generation = 0

    def take(self, remedy: str) -> None:
        """Writes the object: at once where there is none, or its owner is known to be dead."""
        generation, before = self._read()
        if generation and not _is_dead(before):
            text = "%s: left or held by %s; taken over if it does not change in %g s"
            logging.info(text, self.path, _describe(before), TAKEOVER_S)
            deadline = time.monotonic() + TAKEOVER_S
            while generation and time.monotonic() < deadline:
                time.sleep(TAKEOVER_S / 60)
                now, content = self._read()
                if now and now != generation:
                    _refuse(self.path, content, remedy)
                generation = now
        if generation:
            _log_takeover(self.path, before)
        if (owner := self._write(generation)) is not None:
            _refuse(self.path, owner, remedy)  # another start was faster

    def refresh(self) -> bytes | None:
        """Writes the object again; returns the other's content where another has taken over."""
        return self._write(self._generation, retry=None, timeout=HEARTBEAT_S)

    def release(self) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with contextlib.suppress(NotFound):
            try:
                self._bucket.blob(self._name).delete(if_generation_match=self._generation)
            except PreconditionFailed:  # another's, or a last write of ours went unanswered
                if self._find_other() is None:
                    self._bucket.blob(self._name).delete(if_generation_match=self._generation)

    def _read(self) -> tuple[int, bytes]:
        """Its generation, 0 where there is none, and its content."""
        from google.api_core.exceptions import NotFound

        if (found := self._bucket.get_blob(self._name)) is None:
            return 0, b""
        try:
            return found.generation or 0, found.download_as_bytes()
        except NotFound:
            return 0, b""

    def _write(self, generation: int, **options: Any) -> bytes | None:
        """Writes the object if it still is of this generation; else returns what it is now."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self._bucket.blob(self._name)
        try:
            blob.upload_from_string(self._content, if_generation_match=generation, **options)
            self._generation = blob.generation or 0
        except PreconditionFailed:
            return self._find_other()
        return None

    def _find_other(self) -> bytes | None:
        """What the object is now; None where it is ours, which it is of another generation."""
        generation, content = self._read()
        if _parse(content).get("token") != self._token:
            return content
        self._generation = generation
        return None


def _owner(**more: str) -> bytes:
    """The content of this process' lock."""
    owner = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
    }
    return json.dumps(owner | _place(os.getpid()) | more).encode()


def _place(process: int) -> dict[str, str]:
    """What tells a process from all others, those of other containers too; {} where unknown."""
    proc = pathlib.Path("/proc")
    try:
        stat = (proc / str(process) / "stat").read_text()
        return {
            "boot": (proc / "sys/kernel/random/boot_id").read_text().strip(),
            "namespace": os.readlink(proc / "self/ns/pid"),
            "started": stat.rpartition(")")[2].split()[19],  # in ticks since boot
        }
    except (OSError, IndexError):
        return {}


def _is_dead(content: bytes) -> bool:
    """Whether the owner is known to have been a process of this machine that has ended."""
    owner, here = _parse(content), _place(os.getpid())
    if not here or any(owner.get(key) != here[key] for key in ("boot", "namespace")):
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now = _place(owner["process"])
    return bool(now) and now["started"] != owner["started"]


def _parse(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _describe(content: bytes) -> str:
    owner = _parse(content)
    if not {"process", "host", "since"} <= owner.keys():
        return "another process"
    return "process {process} on {host} (since {since})".format_map(owner)


def _refuse(path: str, content: bytes, remedy: str) -> NoReturn:
    raise Held(f"{path} is held by {_describe(content)}; {remedy}")


def _log_takeover(path: str, content: bytes) -> None:
    logging.info("%s: taken over from %s, which has ended", path, _describe(content))
