"""Barriers of all processes, with errors that name the processes that are missing.

JAX's coordination service aborts every process where one never joins, and names none. So there is a
first barrier on its port before the service opens there. The workers' connections to process 0 stay
open for the later barriers, and close at once when a process ends.
"""

import atexit
import contextlib
import json
import selectors
import socket
import time

HOST = socket.gethostname()
# For the first barrier: hosts start and install at their own pace.
JOIN_TIMEOUT_S = 600

ENDED = "ended before (see the log there)"


class MissingProcess(RuntimeError):
    """Processes did not reach a barrier, or have ended; its message names them and their hosts."""


class Coordinator:
    """Process 0: counts the workers that reach a barrier, and sends all of them what is missing.

    The first barrier, named `first`, on `port`, is passed when the constructor returns. Raises
    ValueError where the port is taken.
    """

    def __init__(self, port: int, processes: int, timeout_s: float, first: str = "start"):
        self._names = {process: f"process {process}" for process in range(1, processes)}
        self._connections = {}  # by process
        self._waiting = {}  # process -> the barrier that it waits at
        self._ended = []
        self._selector = selectors.DefaultSelector()
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise ValueError(f"process 0 cannot listen on port {port}: {error}") from None
        self._listener: socket.socket | None = listener
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.wait(first, timeout_s)

    def wait(self, barrier: str, timeout_s: float) -> None:
        """Returns when all have reached the barrier; else raises MissingProcess, in each."""
        deadline = time.monotonic() + timeout_s
        while ready := self._selector.select(self._timeout(deadline)):
            for key, _ in ready:
                if isinstance(key.fileobj, _Connection):
                    self._receive(key.fileobj)
                elif self._listener:
                    connection = _Connection(self._listener.accept()[0])
                    self._selector.register(connection, selectors.EVENT_READ)
        if self._listener:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        verdict = self._verdict(barrier, timeout_s)
        self._waiting.clear()
        for connection in self._connections.values():
            connection.send(verdict)
        if verdict:
            raise MissingProcess(verdict)

    def _timeout(self, deadline: float) -> float:
        if self._ended or len(self._waiting) == len(self._names):
            return 0  # only what has arrived: a process may have ended since
        return max(0, deadline - time.monotonic())

    def _receive(self, connection: "_Connection") -> None:
        try:
            process, host, barrier = connection.receive(timeout_s=5)
            known = process in self._names
        except (OSError, TypeError, ValueError):  # it has ended, or is no worker of this run
            self._disconnect(connection)
            return
        if not known:
            connection.send(
                f"process 0 on {HOST} waits for {len(self._names)} others, none is {process}"
            )
            self._disconnect(connection)
        elif self._connections.get(process, connection) is not connection:
            connection.send(f"{self._names[process]} is there already")
            self._disconnect(connection)
        else:
            self._names[process] = f"process {process} on {host}"
            self._connections[process], self._waiting[process] = connection, barrier

    def _disconnect(self, connection: "_Connection") -> None:
        self._selector.unregister(connection)
        connection.close()
        for process in [each for each, its in self._connections.items() if its is connection]:
            del self._connections[process]
            self._waiting.pop(process, None)
            if not self._listener:  # before the first barrier is passed it may be started again
                self._ended.append(process)

    def _verdict(self, barrier: str, timeout_s: float) -> str:
        """Which processes are missing and why; empty where none is."""
        late = self._names.keys() - self._waiting.keys()
        astray = [process for process, where in self._waiting.items() if where != barrier]
        if self._ended:
            missing, why = self._ended, ENDED
        elif late:
            missing, why = late, f"did not come in {timeout_s:g} s"
        elif astray:
            missing, why = astray, f"came to {self._waiting[astray[0]]!r}"
        else:
            return ""
        names = ", ".join(self._names[process] for process in sorted(missing))
        return f"not all reached the barrier {barrier!r}: {names} {why}"


class Worker:
    """Any other process: reports to process 0, and learns whether all others have.

    The first barrier, named `first`, at `address`, is passed when the constructor returns.
    """

    def __init__(
        self, address: tuple[str, int], process: int, timeout_s: float, first: str = "start"
    ):
        self._process, self._coordinator = process, "process 0 at {}:{}".format(*address)
        deadline = time.monotonic() + timeout_s
        connection = None
        while True:
            try:
                connection = _Connection(socket.create_connection(address, timeout=10))
                self._connection = connection
                verdict = self._ask(first, timeout_s)
                break
            except (OSError, ValueError) as error:
                # it has not started, or an earlier run still listens
                if connection:
                    connection.close()
                if time.monotonic() >= deadline:
                    raise MissingProcess(
                        f"{self._coordinator} did not come in {timeout_s:g} s ({error})"
                    ) from None
                time.sleep(1)
        if verdict:
            raise MissingProcess(verdict)

    def wait(self, barrier: str, timeout_s: float) -> None:
        """Returns when all have reached the barrier; else raises MissingProcess, in each."""
        try:
            verdict = self._ask(barrier, timeout_s)
        except (OSError, ValueError) as error:
            late = isinstance(error, TimeoutError)
            why = f"did not come in {2 * timeout_s:g} s" if late else ENDED
            verdict = f"not all reached the barrier {barrier!r}: {self._coordinator} {why}"
        if verdict:
            raise MissingProcess(verdict)

    def _ask(self, barrier: str, timeout_s: float) -> str:
        self._connection.send([self._process, HOST, barrier])
        # process 0 may itself come late, and then waits as long for the others
        return self._connection.receive(2 * timeout_s)


class _Connection:
    """A connection that carries one JSON value a line."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # firewalls forget a silent connection in minutes; a host without power is noticed so too
        for option, value in (("IDLE", 30), ("INTVL", 10), ("CNT", 6)):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{option}"), value)
        # a process that fails waits at its exit for all others, which must not wait for it
        atexit.register(self.close)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, value) -> None:
        with contextlib.suppress(OSError):  # the reader notices a broken connection
            self._socket.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, timeout_s: float):
        """Raises OSError or ValueError where nothing arrives, or nothing that is JSON."""
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
