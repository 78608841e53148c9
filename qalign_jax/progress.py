"""Progress of long work on stderr: a bar on a terminal, a line every ten seconds in a log."""

import sys
import time

import jax
import tqdm
from absl import logging

LOG_SECONDS = 10.0


class Progress:
    """Counts the units done of `total` and estimates the time left; process 0 alone logs.

    Speed and time left follow from this process's own work, without what was `done` before, and
    without the first units, with which programs are compiled.
    """

    def __init__(self, name: str, total: int, done: int = 0, unit: str = "step"):
        self._name, self._total, self._unit = name, total, unit
        self._before = self._done = done
        self._tokens = 0
        self._began = self._logged = time.monotonic()
        self._warm: tuple[float, int, int] | None = None  # time, done and tokens after the first
        self._bar = None
        if jax.process_index() == 0 and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total, initial=done, desc=name, unit=unit, dynamic_ncols=True, leave=False
            )
        if done:
            logging.info("%s: %d of %d %ss are there", name, done, total, unit)

    def add(self, tokens: int = 0, count: int = 1, **shown: float) -> None:
        """Adds `count` units with their tokens; `shown` is logged beside, like a loss."""
        self._done += count
        self._tokens += tokens
        now = time.monotonic()
        if first := self._warm is None:
            self._warm, self._logged = (now, self._done, self._tokens), now
        began, before, tokens = self._warm
        if now - began < LOG_SECONDS:  # too short to tell a speed
            began, before, tokens = self._began, self._before, 0
        seconds = max(now - began, 1e-9)
        values = [f"{name} {value:.4f}" for name, value in shown.items()]
        if self._tokens:
            values.append(f"{(self._tokens - tokens) / seconds:.0f} tokens/s")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(values), refresh=False)
            self._bar.update(count)
            return
        due = not first and now - self._logged >= LOG_SECONDS
        if not due and self._done < self._total:
            return
        self._logged = now
        left = seconds / (self._done - before) * (self._total - self._done)
        if jax.process_index() == 0:
            logging.info(
                "%s: %s, %s left",
                self._name, ", ".join([f"{self._unit} {self._done} of {self._total}", *values]),
                tqdm.tqdm.format_interval(left),
            )  # fmt: skip

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
