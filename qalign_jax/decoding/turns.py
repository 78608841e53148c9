"""Answers of several turns: a row stops at a string, is replied to, and goes on in the slots.

A solution's code, for one, is executed at its end, and the solution goes on after the output.
"""

import concurrent.futures
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import jax
import numpy as np
from absl import logging

from qalign_jax.data.tokenizer import Tokenizer
from qalign_jax.parallel import hosts

# How long an engine without a row to decode waits for a reply before it looks around.
WAIT_S = 1.0
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclasses.dataclass(frozen=True)
class Turns:
    """Where a turn of an answer stops, and what is put behind it before the next.

    Attributes:
      stop: ends a turn; the text is cut right after it.
      reply: takes a prompt's number and its answer so far, and returns the text to append as a
        future; None ends the answer there. Of several processes the first alone calls it.
      most: replies to one answer; after them the next stop string ends it.
      reply_tokens: the most tokens of a reply, for the caches' length.
    """

    stop: str
    reply: Callable[[int, str], Future[str] | None]
    most: int = 3
    reply_tokens: int = 512

    def __post_init__(self):
        if not self.stop:
            raise ValueError("stop is empty; give the text that ends a turn")
        if self.most < 0 or self.reply_tokens < 0:
            raise ValueError(
                f"most={self.most} replies of reply_tokens={self.reply_tokens}: expected no "
                "negative number"
            )

    def room(self, max_new_tokens: int) -> int:
        """The most tokens of an answer whose every turn has up to `max_new_tokens`."""
        return (self.most + 1) * max_new_tokens + self.most * self.reply_tokens


class Conversations:
    """The texts of the answers that an engine decodes in turns, and the replies under way.

    All processes hold the same; the replies are made in process 0 and sent to the others.
    """

    def __init__(
        self,
        turns: Turns,
        numbers: Sequence[int],
        prompts: Sequence[str],
        tokenizer: Tokenizer,
        encode: Callable[[Sequence[str]], list[list[int]]],
    ):
        """Takes prompts by their numbers, and what gives the ids of prompts, BOS in front.

        Raises:
          ValueError: two prompts of one number.
        """
        self.turns = turns
        self.answers = dict.fromkeys(numbers, "")
        if len(self.answers) < len(prompts):
            raise ValueError("two prompts have the same number; replies need one of its own each")
        self._prompts = dict(zip(numbers, prompts, strict=True))
        self._replies = dict.fromkeys(numbers, 0)
        self._waiting: dict[int, Future[str] | None] = {}
        self._warned = False
        self._tokenizer = tokenizer
        self._encode = encode

    def ended(self, number: int, ids: list[int]) -> bool:
        """Takes the ids of an answer's turn; returns whether a reply to it will be `ready`."""
        text = continuation(self._tokenizer, ids)
        lead = 0
        if not self._replies[number]:  # what tokenizers drop in front of a text is left out
            lead = len(text) - len(self._tokenizer.decode(ids))
        before, stop, _ = text.partition(self.turns.stop)
        text = before + stop
        self._prompts[number] += text[:lead]
        self.answers[number] += text[lead:]
        if not stop or self._replies[number] == self.turns.most:
            return False
        first = jax.process_index() == 0
        self._waiting[number] = self.turns.reply(number, self.answers[number]) if first else None
        return True

    def ready(
        self, length: int, max_new_tokens: int, *, wait: bool
    ) -> list[tuple[int, list[int] | None]]:
        """The answers that were replied to: their numbers, and the ids of their next prompts.

        None in place of ids ends an answer, as where no token more has room in `length`. The same
        in every process, all of which must call it. What a reply raises is raised here.

        Args:
          length: of the caches; one warning where it leaves fewer than `max_new_tokens`.
          wait: whether to wait a while for the first reply.
        """
        replies = {}
        if jax.process_index() == 0:
            under_way = [future for future in self._waiting.values() if future]
            if wait and len(under_way) == len(self._waiting):
                concurrent.futures.wait(under_way, WAIT_S, concurrent.futures.FIRST_COMPLETED)
            for number, future in self._waiting.items():
                if future is None or future.done():
                    replies[number] = None if future is None else future.result()
        replies = dict(json.loads(hosts.broadcast_text(json.dumps(list(replies.items())))))
        going_on = [number for number, reply in replies.items() if reply is not None]
        for number in replies:
            del self._waiting[number]
        for number in going_on:
            self._replies[number] += 1
            self.answers[number] += replies[number]
        texts = [self._prompts[number] + self.answers[number] for number in going_on]
        found = dict.fromkeys(replies)
        for number, ids in zip(going_on, self._encode(texts) if texts else [], strict=True):
            room = length - len(ids)
            if room < max_new_tokens and not self._warned:
                self._warned = True
                logging.warning(
                    "a reply to the answer of prompt %d leaves room for %d instead of %d new "
                    "tokens in %d; this answer and others like it may be cut",
                    number, max(room, 0), max_new_tokens, length,
                )  # fmt: skip
            found[number] = ids if room > 0 else None
        return list(found.items())

    def stop_table(self, vocab_size: int) -> np.ndarray:
        """As the function of this name."""
        return stop_table(self._tokenizer, self.turns.stop, vocab_size)

    def close(self) -> None:
        """Cancels the replies that have not begun."""
        for future in self._waiting.values():
            if future:
                future.cancel()


def continuation(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids behind other text, with the space in front that `decode` may drop."""
    other = tokenizer.encode("a")[-1:]
    return tokenizer.decode([*other, *ids])[len(tokenizer.decode(other)) :]


@functools.lru_cache(maxsize=1)  # seconds for a large vocabulary
def stop_table(tokenizer: Tokenizer, stop: str, vocab_size: int) -> np.ndarray:
    """How much of the stop string a text ends with, after each id: [N + 1, V] int32.

    N is the string's length. table[m, id] is the count of its characters that the text ends with,
    if it ended with m before that id; N once the string has occurred. Byte pieces count as other
    characters, as what they become depends on their neighbours: `Conversations.ended` alone
    finds a stop string that has one.
    """
    length = len(stop)
    after = {
        char: np.array([_matched(stop, stop[:m] + char) for m in range(length)] + [length])
        for char in stop
    }
    after_other = np.array([0] * length + [length])
    # ids beyond the tokenizer's pieces have no text
    table = np.arange(length + 1, dtype=np.int32)[:, None].repeat(vocab_size, axis=1)
    for number in range(min(vocab_size, tokenizer.vocab_size)):
        byte = _BYTE.fullmatch(tokenizer.piece(number))
        for char in "\ufffd" if byte else continuation(tokenizer, [number]):
            table[:, number] = after.get(char, after_other)[table[:, number]]
    return table


def _matched(stop: str, text: str) -> int:
    """How many of the stop string's first characters a text ends with."""
    return next(m for m in range(len(stop), -1, -1) if text.endswith(stop[:m]))
