"""SIGINT and SIGTERM end a command within seconds, whatever its main thread does.

Python runs the handler of a signal in the main thread, between two instructions of its own: not
while a program compiles. An exception that the handler raises in a callback of the garbage
collector is lost. So a thread hears the signals too, and ends the process that the main thread has
not ended by then.
"""

import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable

from absl import logging

# What the main thread has for its `finally` blocks, such as writing answers to gs://.
GRACE_S = {signal.SIGINT: 2, signal.SIGTERM: 20}
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_deferred: "Deferred | None" = None
_notify: Callable[[int], None] | None = None  # JAX of a SIGTERM
_interrupted = False
_ending = threading.Lock()


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM has arrived; `number` says which."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Deferred:
    """From `begin` to the end of its `with`, a signal sets `asked`; SIGINT after that raises.

    A second SIGTERM does not: machines that end send it behind their notice.
    On several hosts it tells JAX's preemption service, which has all processes agree on a step.
    """

    def __init__(self):
        self.asked, self.signal = False, signal.SIGTERM
        self._heard = False
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def begin(self) -> None:
        """Defers from here on; must be called in the main thread."""
        global _deferred
        if _deferred is self:
            return
        for number in GRACE_S:
            self._stack.callback(signal.signal, number, signal.signal(number, self._ask))
        _deferred = self
        self._stack.callback(self._end)

    def _end(self) -> None:
        global _deferred
        _deferred = None

    def _ask(self, number, frame) -> None:
        if not self.asked:
            self.asked, self.signal = True, number
            logging.warning("stopping after this step (Ctrl-C to stop at once)")
            if _notify:
                _notify(signal.SIGTERM)
        elif number == signal.SIGINT:
            raise Interrupted(number)

    def defers(self, number: int) -> bool:
        """Whether the main thread defers a signal, as the other thread hears them in turn."""
        first, self._heard = not self._heard, True
        return first or number == signal.SIGTERM


def watch() -> None:
    """Has both signals raise Interrupted, and end the process; called once, by the main thread."""
    hears, writes = socket.socketpair()
    writes.setblocking(False)
    signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    for number in GRACE_S:
        signal.signal(number, _interrupt)
    threading.Thread(target=_listen, args=(hears, writes), daemon=True).start()


def ignore() -> None:
    """Has both signals change nothing any more."""
    for number in GRACE_S:
        signal.signal(number, signal.SIG_IGN)


def take_over() -> None:
    """Takes SIGTERM back from JAX's preemption service, which hears of deferred signals alone."""
    global _notify
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    if handler := libc.signal(signal.SIGTERM, None):
        _notify = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    signal.signal(signal.SIGTERM, _interrupt)


def end(number: int) -> None:
    """Ends the process with one line and the status 128 + number, at once and without atexit."""
    _ending.acquire()  # one of the two threads comes first, and is the last
    text = f"{WORDS[signal.Signals(number)]}; run the same command again to go on\n"
    os.write(2, text.encode())
    os._exit(128 + number)


def _interrupt(number, frame) -> None:
    global _interrupted
    if not _interrupted:  # a second one would cut the `finally` blocks short
        _interrupted = True
        raise Interrupted(number)


def _listen(hears: socket.socket, writes: socket.socket) -> None:
    while True:
        number = hears.recv(1)[0]
        deferred = _deferred
        if number not in GRACE_S or (deferred and deferred.defers(number)):
            continue
        timer = threading.Timer(GRACE_S[signal.Signals(number)], end, [number])
        timer.daemon = True
        timer.start()
