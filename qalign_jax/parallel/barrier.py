"""Barriers of all processes, and a watch over them: a process that ends or hangs is named.

JAX's coordination service names no process that is missing, and a collective on TPUs waits for it
without end. So process 0 has connections of its own to all processes, itself among them. The first
barrier is passed on the service's port, before the service opens there. The connections stay open:
one closes as soon as its process ends, and both ends send a beat every second, which stops where a
process hangs.
"""

import contextlib
import json
import math
import os
import queue
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

HOST = socket.gethostname()
# For the first barrier: hosts start and install at their own pace.
JOIN_TIMEOUT_S = 600
# Without a beat: longer than any call holds the interpreter's lock.
HANG_TIMEOUT_S = 60
# Longer than any host's own work between two barriers, the building of data sets above all.
BARRIER_TIMEOUT_S = 3600
# The exit status where a process is missing: all of them, started again, go on.
STATUS = 75

# Left to a process for its own error, after another has ended.
OWN_ERROR_S = 1.0
# Left to the watch to name a process, where an error of the main thread may come of its absence.
SETTLE_S = 3.0

ENDED = "has ended (its log says why)"
_END = "end"


class MissingProcess(RuntimeError):
    """Processes did not reach a barrier, have ended or hang; its message names them."""


class Coordinator:
    """A thread of process 0 that lets all processes pass a barrier, or tells which are missing.

    Raises ValueError where the port is taken.
    """

    def __init__(
        self,
        port: int,
        processes: int,
        join_timeout_s: float = JOIN_TIMEOUT_S,
        hang_timeout_s: float = HANG_TIMEOUT_S,
        barrier_timeout_s: float = BARRIER_TIMEOUT_S,
    ):
        self._names = [f"process {process}" for process in range(processes)]
        self._timeout_s, self._hang_s = join_timeout_s, hang_timeout_s
        self._barrier_s = barrier_timeout_s
        self._deadline = time.monotonic() + join_timeout_s
        self._beat = 0.0  # when the next one is sent
        self._started = False
        self._members: dict[int, _Connection] = {}
        self._waiting: dict[int, str] = {}  # process -> the barrier that it waits at
        self._selector = selectors.DefaultSelector()
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            self._listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise ValueError(f"process 0 cannot listen on port {port}: {error}") from None
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        missing = last = ""
        while not missing and last != _END:
            ended = self._receive(_beat_s(self._hang_s))
            missing = self._verdict(ended)
            if missing or len(self._waiting) == len(self._names):
                last = self._waiting.get(0, "")
                self._answer(missing)
        # all end before this process: JAX aborts those that its service leaves
        deadline = time.monotonic() + SETTLE_S
        while self._members and time.monotonic() < deadline:
            self._receive(0.1)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, _Connection)
            key.fileobj.close()
        self._selector.close()

    def _receive(self, timeout_s: float) -> list[int]:
        """Takes what has arrived, and sends a beat; returns the processes that have ended."""
        ended = []
        for key, _ in self._selector.select(timeout_s):
            if not isinstance(connection := key.fileobj, _Connection):
                accepted = _Connection(self._listener.accept()[0])
                self._selector.register(accepted, selectors.EVENT_READ)
                continue
            try:
                for value in connection.receive(0):
                    self._take(connection, *value)
            except (OSError, RecursionError, TypeError, ValueError):
                # it has ended, or is no process of this run
                self._selector.unregister(connection)
                connection.close()
                ended += [number for number, its in self._members.items() if its is connection]
        for process in ended:
            del self._members[process]
            self._waiting.pop(process, None)
        if time.monotonic() >= self._beat:
            self._beat = time.monotonic() + _beat_s(self._hang_s)
            for connection in self._members.values():
                connection.send([])
        return ended

    def _take(self, connection: "_Connection", process=None, host="", barrier="") -> None:
        if process is None:  # a beat
            return
        if process not in range(len(self._names)):
            count = len(self._names) - 1
            missing = f"process 0 on {HOST} waits for {count} others, none is {process}"
            connection.send([missing, HOST])
        elif self._members.get(process, connection) is not connection:
            connection.send([f"{self._names[process]} is there already", HOST])
        else:
            if math.isinf(self._deadline):
                self._deadline = time.monotonic() + self._timeout_s
            self._names[process] = f"process {process} on {host}"
            self._members[process], self._waiting[process] = connection, barrier

    def _verdict(self, ended: list[int]) -> str:
        """Which processes are missing and why; empty where none is."""
        now = time.monotonic()
        barrier = self._waiting.get(0) or next(iter(self._waiting.values()), "")
        place = f"not all reached the barrier {barrier!r}: "
        late = set(range(len(self._names))) - self._waiting.keys()
        hung = [process for process, its in self._members.items() if its.silent_s > self._hang_s]
        astray = [process for process, where in self._waiting.items() if where != barrier]
        if ended and self._started:  # before that it may be started again
            return f"{self._all(ended)} {ENDED}"
        if hung and self._started:
            return f"{self._all(hung)} {_hangs(self._hang_s)}"
        if late and now > self._deadline:
            return f"{place}{self._all(late)} did not come in {self._timeout_s:g} s"
        if astray and not late:
            return f"{place}{self._all(astray)} came to {self._waiting[astray[0]]!r}"
        return ""

    def _all(self, processes: Iterable[int]) -> str:
        return ", ".join(self._names[process] for process in sorted(processes))

    def _answer(self, missing: str) -> None:
        if not self._started:
            self._started = True
            self._timeout_s = self._barrier_s
            self._selector.unregister(self._listener)
            self._listener.close()
        self._waiting.clear()
        self._deadline = math.inf
        for process in sorted(self._members, reverse=True):  # this process may end with its answer
            self._members[process].send([missing, HOST])


class Member:
    """A process at the barriers, and its thread that hears of the others.

    The first barrier is passed when the constructor returns; `end` is called in the thread, with a
    message, where a process is missing later.

    Raises MissingProcess where not all join.
    """

    def __init__(
        self,
        address: tuple[str, int],
        process: int,
        end: Callable[[str], None],
        join_timeout_s: float = JOIN_TIMEOUT_S,
        hang_timeout_s: float = HANG_TIMEOUT_S,
        first: str = "start",
    ):
        self._process, self._hang_s, self._end = process, hang_timeout_s, end
        self._coordinator = "process 0 at {}:{}".format(*address)
        self._verdicts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._leaves = self._closed = False
        self._join(address, join_timeout_s, first)
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self, barrier: str) -> None:
        """Returns when all have reached the barrier; else raises MissingProcess, in each."""
        self._connection.send([self._process, HOST, barrier])
        if verdict := self._verdicts.get():
            raise MissingProcess(verdict)

    def leave(self) -> None:
        """Waits until all leave, which then end without being missed."""
        self._leaves = True
        self.wait(_END)
        self.close()

    def close(self) -> None:
        """Has the others name this process as ended."""
        self._closed = True
        self._connection.close()

    def _join(self, address: tuple[str, int], timeout_s: float, first: str) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            connection = None
            try:
                connection = _Connection(socket.create_connection(address, timeout=10))
                self._connection = connection
                connection.send([self._process, HOST, first])
                while connection.silent_s < self._hang_s:
                    for missing in self._answers():
                        if missing:
                            connection.close()
                            raise MissingProcess(missing)
                        return
                raise TimeoutError(_hangs(self._hang_s))
            except (OSError, ValueError) as error:
                # it has not started, or an earlier run still listens
                if connection:
                    connection.close()
                if time.monotonic() >= deadline:
                    why = f"did not come in {timeout_s:g} s ({error})"
                    raise MissingProcess(f"{self._coordinator} {why}") from None
                time.sleep(1)

    def _watch(self) -> None:
        verdict, patience_s = "", 0.0
        while not (verdict or self._closed):
            self._connection.send([])
            try:
                answers = self._answers()
                patience_s = OWN_ERROR_S if answers else 0
                if self._connection.silent_s > self._hang_s:
                    answers = [f"{self._coordinator} {_hangs(self._hang_s)}"]
            except (OSError, ValueError):
                answers = [f"{self._coordinator} {ENDED}"]
            for verdict in answers:
                self._verdicts.put(verdict)
                if self._leaves and not verdict:
                    return
        if not self._closed:
            time.sleep(patience_s)
            self._end(verdict)

    def _answers(self) -> list[str]:
        """What process 0 has said, beside its beats; waits for a beat at most."""
        answers = [answer for answer in self._connection.receive(_beat_s(self._hang_s)) if answer]
        for _, host in answers:
            self._coordinator = f"process 0 on {host}"
        return [str(missing) for missing, _ in answers]


class _Connection:
    """A connection that carries one JSON list a line; an empty one is a beat."""

    def __init__(self, connection: socket.socket):
        self._socket, self._text = connection, b""
        self._poll = select.poll()  # select() knows few files
        self._poll.register(connection, select.POLLIN)
        self._heard = time.monotonic()
        connection.settimeout(5)  # to send in
        # a host without power closes no connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    @property
    def silent_s(self) -> float:
        """Since when nothing has come."""
        return time.monotonic() - self._heard

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, value: list) -> None:
        with contextlib.suppress(OSError):  # the reader notices a broken connection
            self._socket.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, timeout_s: float) -> list[list]:
        """What comes within the time, if anything.

        Raises OSError or ValueError where the connection is closed or carries something else.
        """
        if not self._poll.poll(timeout_s * 1000):
            return []
        part = self._socket.recv(4096)
        self._heard = time.monotonic()
        *lines, self._text = (self._text + part).split(b"\n")
        values = [json.loads(line) for line in lines]
        if not part or len(self._text) > 4096 or not all(isinstance(v, list) for v in values):
            raise ValueError("it has closed the connection, or is no process of a run")
        return values

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # also where another thread waits for it
        self._socket.close()


def _beat_s(hang_timeout_s: float) -> float:
    return min(1.0, hang_timeout_s / 5)


def _hangs(seconds: float) -> str:
    return f"has not been heard of for {seconds:g} s"


_coordinator: Coordinator | None = None
_member: Member | None = None


def join(
    address: tuple[str, int],
    process: int,
    processes: int,
    join_timeout_s: float = JOIN_TIMEOUT_S,
    hang_timeout_s: float = HANG_TIMEOUT_S,
) -> None:
    """Joins this process to the others; from then on it ends with STATUS where one is missing.

    Raises:
      ValueError: the port of process 0 is taken.
      MissingProcess: not all joined.
    """
    global _coordinator, _member
    first = f"start of {processes}"  # processes that expect another number wait at another barrier
    if process == 0:
        _coordinator = Coordinator(address[1], processes, join_timeout_s, hang_timeout_s)
        address = ("localhost", address[1])
    _member = Member(address, process, _end, join_timeout_s, hang_timeout_s, first)


def wait(name: str) -> None:
    """Returns when every process has reached the barrier of this name; does nothing in one."""
    if _member:
        _member.wait(name)


def leave() -> None:
    """Waits until all processes leave, each of which may then end."""
    global _member
    if _member:
        _member.leave()
        _member = None


def settle() -> None:
    """Leaves the watch its time to end this process, before an error that it may explain."""
    if _member:
        time.sleep(SETTLE_S)


def abandon(status: int) -> NoReturn:
    """Ends this process; where there are others, without JAX's wait for them at the exit."""
    if not _member:
        sys.exit(status)
    _member.close()
    if _coordinator:
        _coordinator.thread.join()
    os._exit(status)


def _end(missing: str) -> None:
    text = f"error: {missing}. Start all processes again to go on\n"
    os.write(2, text.encode())  # print would wait for a lock that the main thread may hold
    os._exit(STATUS)
