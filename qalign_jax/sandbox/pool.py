"""A pool of warm sandboxes, each of which runs one solution."""

import base64
import concurrent.futures
import contextlib
import dataclasses
import json
import queue
from collections.abc import Iterator

from qalign_jax.sandbox.bubblewrap import explain, make_command
from qalign_jax.sandbox.limits import Limits, Outcome
from qalign_jax.sandbox.process import Process
from qalign_jax.sandbox.seccomp import make_filter

START_SECONDS = 60
READY = b'"ready"\n'
CUT = "<output cut>"


class Session:
    """The blocks of one solution, run in order, with state kept between them.

    It stops at the first block whose outcome is not ok: what follows is not run.
    """

    def __init__(self, process: Process, limits: Limits):
        self._process, self._limits = process, limits
        self._failed = False

    def run(self, code: str, call: str | None = None) -> Outcome:
        """Runs a block, then calls the function named `call`, whose result is the value."""
        if self._failed:
            return Outcome("error", "not run: an earlier block of this solution failed")
        outcome = self._run(code, call)
        if outcome.status != "ok":
            self._failed = True
            self._process.kill()
        return outcome

    def _run(self, code: str, call: str | None) -> Outcome:
        limits = self._limits
        if len(code) > limits.code_characters:
            reason = f"{len(code)} characters of code, at most {limits.code_characters} are run"
            return Outcome("error", f"not run: {reason}")
        request = json.dumps({"code": code, "call": call}).encode() + b"\n"
        try:
            line = self._process.exchange(request, limits.seconds)
        except TimeoutError:
            return Outcome("timeout", f"TimeoutError: no result within {limits.seconds:g} seconds")
        except EOFError:
            return Outcome("killed", "the program ended its process, or wrote what is no result")
        return read_outcome(line, limits.output_characters)


class Sandbox:
    """Runs model-written code in processes of their own, `workers` at once; see the README.

    A process runs one solution and is then killed; the next one starts in the background. Threads
    may share a sandbox. Nothing of it outlives `close`, or the host's process.
    """

    def __init__(self, workers: int = 2, limits: Limits = Limits()):
        """Starts the workers and runs a program.

        Raises:
          ValueError: sandboxes do not start on this machine, with what to install or allow.
        """
        if workers < 1:
            raise ValueError(f"workers={workers}: expected at least 1")
        self.limits = limits
        self._command = make_command()
        setup = dataclasses.asdict(limits) | {"filter": base64.b64encode(make_filter()).decode()}
        self._setup = json.dumps(setup).encode() + b"\n"
        # These threads stay until the end: a process ends with the thread that started it.
        self._starter = concurrent.futures.ThreadPoolExecutor(workers, "sandbox")
        self._started: set[Process] = set()
        self._warm: queue.Queue[concurrent.futures.Future[Process] | None] = queue.Queue()
        for _ in range(workers):
            self._warm.put(self._starter.submit(self._start))
        try:
            probe = self.run("print(6 * 7)")
        except RuntimeError as error:
            self.close()
            raise ValueError(str(error)) from None
        if probe != Outcome("ok", "42\n"):
            self.close()
            raise ValueError(f"the sandbox does not run print(6 * 7) to 42 in {limits}: {probe}")

    def _start(self) -> Process:
        # two texts, in which a character is written as \ud83d\ude00 at the longest
        most_bytes = 2 * 12 * (self.limits.output_characters + 1) + 1000
        process = Process(self._command, self._setup, most_bytes)
        try:
            line = process.exchange(b"", START_SECONDS)
        except (EOFError, TimeoutError):
            line = b""
        if line != READY:
            words = process.words()
            process.close()
            raise RuntimeError(explain(words))
        self._started.add(process)
        return process

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A session in a sandbox of its own; waits until one is free.

        Raises:
          RuntimeError: the sandbox does not start, or is closed.
        """
        future = self._warm.get()
        if future is None:
            self._warm.put(None)  # for the next thread that waits
            raise RuntimeError("the sandbox is closed")
        try:
            yield Session(future.result(), self.limits)
        finally:
            self._replace(future)

    def _replace(self, future: concurrent.futures.Future[Process]) -> None:
        if not future.exception():
            self._started.discard(future.result())
            future.result().close()
        with contextlib.suppress(RuntimeError):  # closed in the meantime
            self._warm.put(self._starter.submit(self._start))

    def run(self, code: str, call: str | None = None) -> Outcome:
        """Runs one block in a session of its own."""
        with self.session() as session:
            return session.run(code, call)

    def close(self) -> None:
        """Ends every process; open sessions find theirs killed."""
        self._starter.shutdown()
        with contextlib.suppress(queue.Empty):
            while future := self._warm.get_nowait():
                self._replace(future)
        self._warm.put(None)
        for process in list(self._started):
            process.kill()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_outcome(line: bytes, most: int) -> Outcome:
    """A worker's message, which may be anything; texts are cut behind `most` characters."""

    def tidy(text: str) -> str:
        text = text.encode(errors="replace").decode()  # lone surrogates cannot be written
        return text if len(text) <= most else text[:most] + CUT

    try:
        message = json.loads(line)
        status, output, value = message["status"], message["output"], message["value"]
        if status in ("ok", "error", "memory"):
            return Outcome(status, tidy(output), None if value is None else tidy(value))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return Outcome("killed", "the program wrote what is no result")
