"""Requests to decode on the host: which wait, which are read into rows, which rows decode."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from qalign_jax.decoding.plan import Plan, prefill_shape, room_for
from qalign_jax.decoding.speculative import Drafted
from qalign_jax.decoding.trace import Columns

# While more prompts are to be read, rows decode this many tokens between two prefills.
STEPS_BETWEEN_PREFILLS = 4
# A prefix that all prompts share is computed once, in multiples of this many tokens.
PREFIX_MULTIPLE = 32


class Generated(NamedTuple):
    """The answer to a prompt: the prompt's number, the ids without EOS, their trace, and how its
    tokens were drafted (None where nothing drafts)."""

    number: int
    tokens: list[int]
    traced: Columns | None = None
    drafted: Drafted | None = None


class Streamed(NamedTuple):
    """New tokens of an answer: the prompt's number, the ids, and with the last the whole answer."""

    number: int
    tokens: list[int]
    answer: Generated | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue with up to `limit` tokens; of an answer in turns, the next of them."""

    number: int
    prompt: Sequence[int]
    limit: int
    before: Sequence[int] = ()  # the ids that the answer's earlier turns generated
    traced: Sequence[Columns | None] = ()  # of each of these turns
    drafted: Drafted | None = None  # of all of them

    def ended(self, tokens: list[int]) -> Streamed:
        """The answer's last tokens, which are among those `before`."""
        traced = jax.tree.map(lambda *turns: np.concatenate(turns), *self.traced)
        return Streamed(
            self.number, tokens, Generated(self.number, list(self.before), traced, self.drafted)
        )


class Rows:
    """The rows of the device's slots, as the host knows them.

    Prompts are read in parts. Where rows decode already, they wait for one part at a time.
    """

    def __init__(self, plan: Plan, prefix: int, requests: Sequence[Request]):
        """Takes requests in the order in which they are begun.

        Args:
          prefix: how many tokens of every prompt all rows have in their caches already.
        """
        self.running: dict[int, Request] = {}  # by row
        self._plan, self._prefix = plan, prefix
        self._waiting = collections.deque(requests)
        self._reading: _Reading | None = None
        self._idle = list(range(plan.slots))
        self._told: dict[int, int] = {}  # of running rows, the turn's tokens that were taken

    @property
    def busy(self) -> bool:
        """Whether a request waits, is read or is decoded."""
        return bool(self._waiting or self._reading or self.running)

    def wait_in_front(self, request: Request) -> None:
        """Puts a request in front of those that wait."""
        self._waiting.appendleft(request)

    def parts(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yields what `fill` reads next: `start`, and its arguments of prompts."""
        decoding = bool(self.running)
        while True:
            if not self._reading and self._waiting and len(self._idle) >= self._group_size():
                group = [self._waiting.popleft() for _ in range(self._group_size())]
                in_rows = {self._idle.pop(): request for request in group}
                self._reading = _Reading(self._plan, in_rows, self._prefix)
            if not self._reading:
                return
            yield self._reading.start, self._reading.part()
            for row, request in self._reading.ended().items():
                self.running[row], self._told[row] = request, 0
            self._reading = self._reading.rest()
            if decoding:
                return

    @property
    def longest(self) -> int:
        """The tokens of the longest running row."""
        # the first token is chosen by the prefill, and none is lost where EOS follows at once
        lengths = [len(self.running[row].prompt) + told + 1 for row, told in self._told.items()]
        return max(lengths, default=1)

    def next_rounds(self, steps: int, drafts: int) -> tuple[int, int, int]:
        """What `advance` does next: `room`, `stop_at_active`, and at most how many rounds.

        Args:
          steps: about how many tokens a row has at most; drafts: of a round, of which there is at
            least one.
        """
        slots, width = self._plan.slots, drafts + 1
        wanted = self._group_size() if self._waiting else slots
        stop_at_active = slots - wanted
        if self._reading or (self._waiting and len(self._idle) >= wanted):
            stop_at_active, steps = 0, STEPS_BETWEEN_PREFILLS
        room = room_for(self._plan, self.longest + max(STEPS_BETWEEN_PREFILLS, drafts))
        rounds = max(1, steps // width)
        if room < self._plan.length:
            rounds = min(rounds, (room - self.longest + 1) // width)
        return room, stop_at_active, rounds

    def take(self, row: int, ids: list[int], active: bool) -> list[int]:
        """Takes all ids of a running row's turn so far; returns those that are new."""
        new = ids[self._told[row] :]
        self._told[row] = len(ids)
        if not active:
            del self.running[row], self._told[row]
            self._idle.append(row)
        return new

    def _group_size(self) -> int:
        plan, start = self._plan, self._prefix
        most, _ = prefill_shape(plan, start + 1, start)
        longest = max(len(request.prompt) for request in itertools.islice(self._waiting, most))
        return min(len(self._waiting), prefill_shape(plan, longest, start)[0])


@dataclasses.dataclass(frozen=True)
class _Reading:
    """Prompts on their way into their rows, of which the first `start` tokens have been read."""

    plan: Plan
    requests: dict[int, Request]  # by row
    start: int

    def _shape(self) -> tuple[int, int]:
        longest = max(len(request.prompt) for request in self.requests.values())
        return prefill_shape(self.plan, longest, self.start)

    def part(self) -> dict[str, np.ndarray]:
        """The arguments of `fill` for the next part; rows past the group's end are dropped."""
        width, bucket = self._shape()
        arrays = dict(
            tokens=np.zeros((width, bucket), np.int32),
            lengths=np.ones(width, np.int32),
            rows=np.full(width, self.plan.slots, np.int32),
            requests=np.zeros(width, np.int32),
            generated=np.zeros(width, np.int32),
            limits=np.zeros(width, np.int32),
        )
        ended = self.ended()
        for i, (row, request) in enumerate(self.requests.items()):
            part = request.prompt[self.start : self.start + bucket]
            arrays["tokens"][i, : len(part)] = part
            arrays["lengths"][i] = len(part)
            arrays["rows"][i] = row
            arrays["requests"][i] = request.number
            if row in ended:
                arrays["generated"][i] = len(request.before)
                arrays["limits"][i] = len(request.before) + request.limit
        return arrays

    def ended(self) -> dict[int, Request]:
        """The requests whose last part is the next one, by row."""
        end = self.start + self._shape()[1]
        return {row: each for row, each in self.requests.items() if len(each.prompt) <= end}

    def rest(self) -> "_Reading | None":
        """What is left after the next part."""
        ended, end = self.ended(), self.start + self._shape()[1]
        rest = {row: each for row, each in self.requests.items() if row not in ended}
        return _Reading(self.plan, rest, end) if rest else None


def common_prefix(requests: Sequence[Request]) -> Sequence[int]:
    """The tokens that all of several prompts begin with, in whole multiples of PREFIX_MULTIPLE.

    Of every prompt a token is left, whose logits choose the first of the answer.
    """
    prompts = [list(request.prompt) for request in requests]
    first, last = min(prompts), max(prompts)  # in the order of lists: they differ first of all
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    most = min(len(first), len(last)) if shared is None else shared
    most = min(most, *(len(prompt) - 1 for prompt in prompts)) if len(prompts) > 1 else 0
    return first[: most // PREFIX_MULTIPLE * PREFIX_MULTIPLE]
