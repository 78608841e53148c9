"""Traces of chosen training steps, for TensorBoard and Perfetto."""

import dataclasses

import jax
from absl import logging


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps to trace, `first` to `last`, counted from 1 as in metrics.jsonl."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Reads `10:15`; raises ValueError for anything else."""
        first, colon, last = text.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise ValueError(f"--profile={text}: expected the first and the last step, like 10:15")
        return cls(int(first), int(last))


class Tracer:
    """Starts and stops a profile's trace in `folder` around the steps that it covers.

    The trace lies under `folder`/plugins/profile, where TensorBoard's profile plugin looks for it;
    its *.trace.json.gz opens in Perfetto.
    """

    def __init__(self, profile: Profile | None, folder):
        self._profile, self._folder = profile, folder
        self._running = self._traced = False

    def before(self, step: int) -> None:
        """Starts the trace where `step` is one of the profile's."""
        profile = self._profile
        if profile and not self._running and profile.first <= step <= profile.last:
            jax.profiler.start_trace(str(self._folder))
            self._running = self._traced = True

    def after(self, step: int, result) -> None:
        """Stops the trace behind the profile's last step, once `result` is computed."""
        if self._running and self._profile and step >= self._profile.last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Stops a trace that still runs; warns where there was none."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logging.info("a trace is in %s/plugins/profile", self._folder)
        elif self._profile and not self._traced:
            logging.warning("no trace: none of the steps %s ran", self._profile)
