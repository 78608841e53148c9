"""Meetings of all processes, where those that are missing are named.

JAX's coordinator aborts everyone where a process never comes, and names none. So the processes meet
on its port before it opens there. Their connections to process 0 stay for the later meetings, and
tell at once when a process has ended.
"""

import atexit
import contextlib
import json
import selectors
import socket
import time

HOST = socket.gethostname()
# To the first meeting: hosts start and install at their own pace.
JOIN_TIMEOUT_S = 600

ENDED = "ended before (see the log there)"


class MissingProcess(RuntimeError):
    """Processes did not come to a meeting, or have ended; says which, and on which host."""


class Chair:
    """Process 0: hears who has come, and tells everyone who has not.

    The first meeting, of the name `first` on `port`, is over when the constructor returns. Raises
    ValueError where the port is taken.
    """

    def __init__(self, port: int, processes: int, timeout_s: float, first: str = "start"):
        self._names = {process: f"process {process}" for process in range(1, processes)}
        self._lines = {}  # by process
        self._here = {}  # process -> the meeting that it waits at
        self._ended = []
        self._selector = selectors.DefaultSelector()
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            self._door = socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise ValueError(f"process 0 cannot listen on port {port}: {error}") from None
        self._selector.register(self._door, selectors.EVENT_READ)
        self.meet(first, timeout_s)

    def meet(self, meeting: str, timeout_s: float) -> None:
        """Returns when all are here; else raises MissingProcess, in every process."""
        deadline = time.monotonic() + timeout_s
        while ready := self._selector.select(self._patience(deadline)):
            for key, _ in ready:
                if key.fileobj is self._door:
                    line = _Line(self._door.accept()[0])
                    self._selector.register(line, selectors.EVENT_READ)
                else:
                    self._hear(key.fileobj)
        if self._door:
            self._selector.unregister(self._door)
            self._door = self._door.close()
        verdict = self._verdict(meeting, timeout_s)
        self._here.clear()
        for line in self._lines.values():
            line.send(verdict)
        if verdict:
            raise MissingProcess(verdict)

    def _patience(self, deadline: float) -> float:
        if self._ended or len(self._here) == len(self._names):
            return 0  # only what is there already: somebody may have come and ended since
        return max(0, deadline - time.monotonic())

    def _hear(self, line: "_Line") -> None:
        try:
            process, host, meeting = line.receive(timeout_s=5)
            known = process in self._names
        except (OSError, TypeError, ValueError):  # it has ended, or was none of ours
            self._hang_up(line)
            return
        if not known:
            line.send(f"process 0 on {HOST} waits for {len(self._names)} others, none is {process}")
            self._hang_up(line)
        elif self._lines.get(process, line) is not line:
            line.send(f"{self._names[process]} is there already")
            self._hang_up(line)
        else:
            self._names[process] = f"process {process} on {host}"
            self._lines[process], self._here[process] = line, meeting

    def _hang_up(self, line: "_Line") -> None:
        self._selector.unregister(line)
        line.close()
        for process in [process for process, its in self._lines.items() if its is line]:
            del self._lines[process]
            self._here.pop(process, None)
            if not self._door:  # until the first meeting is over it may be started again
                self._ended.append(process)

    def _verdict(self, meeting: str, timeout_s: float) -> str:
        """Who is missing and why; empty where nobody is."""
        late = self._names.keys() - self._here.keys()
        astray = [process for process, where in self._here.items() if where != meeting]
        if self._ended:
            missing, why = self._ended, ENDED
        elif late:
            missing, why = late, f"did not come in {timeout_s:g} s"
        elif astray:
            missing, why = astray, f"came to {self._here[astray[0]]!r}"
        else:
            return ""
        names = ", ".join(self._names[process] for process in sorted(missing))
        return f"not all are at {meeting!r}: {names} {why}"


class Member:
    """Any other process: tells process 0 that it has come, and hears whether all others have.

    The first meeting, of the name `first` at `address`, is over when the constructor returns.
    """

    def __init__(
        self, address: tuple[str, int], process: int, timeout_s: float, first: str = "start"
    ):
        self._process, self._chair = process, "process 0 at {}:{}".format(*address)
        self._line = None
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._line = _Line(socket.create_connection(address, timeout=10))
                verdict = self._ask(first, timeout_s)
                break
            except (OSError, ValueError) as error:  # it is not there yet, or an earlier run still
                if self._line:
                    self._line.close()
                if time.monotonic() >= deadline:
                    raise MissingProcess(
                        f"{self._chair} did not come in {timeout_s:g} s ({error})"
                    ) from None
                time.sleep(1)
        if verdict:
            raise MissingProcess(verdict)

    def meet(self, meeting: str, timeout_s: float) -> None:
        """Returns when all are here; else raises MissingProcess, in every process."""
        try:
            verdict = self._ask(meeting, timeout_s)
        except (OSError, ValueError) as error:
            late = isinstance(error, TimeoutError)
            why = f"did not come in {2 * timeout_s:g} s" if late else ENDED
            verdict = f"not all are at {meeting!r}: {self._chair} {why}"
        if verdict:
            raise MissingProcess(verdict)

    def _ask(self, meeting: str, timeout_s: float) -> str:
        self._line.send([self._process, HOST, meeting])
        # process 0 may itself come late, and then waits as long for the others
        return self._line.receive(2 * timeout_s)


class _Line:
    """A connection that carries one JSON value in a line."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # firewalls forget a silent connection in minutes; a host without power is noticed so too
        for option, value in (("IDLE", 30), ("INTVL", 10), ("CNT", 6)):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{option}"), value)
        # a process that fails waits for all others at its exit, where they shall not wait for it
        atexit.register(self.close)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, value) -> None:
        with contextlib.suppress(OSError):  # a broken line is noticed by who reads it
            self._socket.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, timeout_s: float):
        """Raises OSError or ValueError where nothing comes, or nothing that is of ours."""
        self._socket.settimeout(timeout_s)
        text = b""
        while not text.endswith(b"\n"):
            part = self._socket.recv(4096)
            if not part:
                raise ConnectionError("it has closed the connection")
            text += part
        return json.loads(text)

    def close(self) -> None:
        self._socket.close()
