"""One sandboxed process, seen from the host: bounded messages, in bounded time."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence


class Process:
    """A process that answers a line with a line.

    Linux ends it when the thread that started it ends (bwrap's --die-with-parent).
    """

    def __init__(self, command: Sequence[str], first: bytes, most_bytes: int):
        """Starts the process and writes it the `first` line; an answer has up to `most_bytes`.

        Raises:
          RuntimeError: the program is there and cannot be executed.
        """
        self._most = most_bytes
        self._words = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words,
                bufsize=0, env={}, start_new_session=True,  # Ctrl-C is for the host to handle
            )  # fmt: skip
        except OSError as error:
            self._words.close()
            raise RuntimeError(f"{command[0]} cannot be executed: {error.strerror}") from None
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        with contextlib.suppress(BrokenPipeError):  # the first exchange says why
            os.write(self._input, first)

    def exchange(self, line: bytes, seconds: float) -> bytes:
        """Writes a line and returns the line that comes back.

        Raises:
          TimeoutError: none came within `seconds`.
          EOFError: the process ended, or wrote something other than one line of at most
            `most_bytes`.
        """
        deadline = time.monotonic() + seconds
        left, received = memoryview(line), b""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        if left:
            poll.register(self._input, select.POLLOUT)
        while b"\n" not in received:
            wait = deadline - time.monotonic()
            if wait <= 0:
                raise TimeoutError
            for descriptor, _ in poll.poll(wait * 1000):
                if descriptor == self._output:
                    chunk = os.read(self._output, self._most + 1 - len(received))
                    received += chunk
                    if not chunk or len(received) > self._most:
                        raise EOFError
                else:
                    try:
                        left = left[os.write(self._input, left) :]
                    except BrokenPipeError:
                        left = left[:0]
                    if not left:
                        poll.unregister(self._input)
        if received.index(b"\n") != len(received) - 1:
            raise EOFError
        return received

    def kill(self) -> None:
        """Ends the process and everything in its sandbox; any thread may call it."""
        # bwrap and the interpreter are one process group, which a solution cannot leave; where
        # bwrap alone were killed while it starts, its child would wait for it forever
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def words(self) -> str:
        """What the process wrote to standard error, the last 2,000 bytes; kills it."""
        self.kill()
        self._process.wait()
        self._words.seek(0)
        return self._words.read()[-2000:].decode(errors="replace")

    def close(self) -> None:
        """Kills the process, waits for it and closes its files."""
        self.kill()
        with self._process, self._words:  # the process' exit waits
            pass
