"""Speculative decoding: what drafts tokens, how many, and how many of them were kept.

A draft changes no token. It guesses with the random key that chooses the token itself, and is kept
where both choose alike: then what was chosen is what plain decoding chooses, greedy or sampled.
Plain decoding with the same prompts, seed and numbers therefore has the same tokens, up to the
rounding of a pass over several tokens (none was seen in f32; tests/README.md has bf16).

In proxy-tuning the expert drafts (Leviathan et al., arXiv 2211.17192, with a model that decodes
anyway): its logits at the drafts are those that proxy-tuning needs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qalign_jax.decoding.plan import LOOKUP, MODEL, Plan, each_model
from qalign_jax.decoding.sampling import choose, row_keys
from qalign_jax.models.llama import Llama

# Of a text's last tokens, how many are looked up at most (prompt look-up).
LOOKED_UP = 3


class Drafted(struct.PyTreeNode):
    """Counts of drafting, each an array of one shape, or a whole number on the host."""

    rounds: Any  # passes of the models that judge
    tokens: Any  # chosen in them, EOS among them
    compared: Any  # drafts that were compared with the token chosen in their place
    kept: Any  # of these, the equal ones

    @classmethod
    def none(cls, rows: int) -> "Drafted":
        return cls(*[jnp.zeros(rows, jnp.int32)] * 4)

    @classmethod
    def nothing(cls) -> "Drafted":
        """As `none`, on the host."""
        return cls(0, 0, 0, 0)

    def after(self, taken, chosen, guess, first: bool) -> "Drafted":
        """The counts after one place of a round, in the rows where it is `taken`."""
        compared = 0 if guess is None else taken
        kept = 0 if guess is None else taken & (chosen == guess)
        return Drafted(
            self.rounds + taken * first, self.tokens + taken, self.compared + compared,
            self.kept + kept,
        )  # fmt: skip

    def shares(self) -> dict[str, float]:
        """On the host: `tokens_per_round` and `acceptance`, where there were any."""
        found = {}
        if self.rounds:
            found["tokens_per_round"] = round(self.tokens / self.rounds, 3)
        if self.compared:
            found["acceptance"] = round(self.kept / self.compared, 4)
        return found

    def __add__(self, other: "Drafted") -> "Drafted":
        return jax.tree.map(lambda one, more: one + more, self, other)


def newest_positions(plan: Plan, slots) -> jax.Array:
    """Where each row's newest token is read, [B] int32: idle rows past the cache's end."""
    return jnp.where(slots.active, slots.positions, plan.length)


def draft(
    plan: Plan, room: int, drafts: int, params, key, slots
) -> tuple[jax.Array, jax.Array | None, tuple]:
    """Guesses the tokens behind each row's newest.

    Args:
      room: as of slots.py's `advance`; drafts: k, how many; slots: slots.py's Slots.

    Returns:
      the guesses [B, k] int32; where the model that drafts is one of the targets, its logits
      [B, k + 1, V] f32 after the newest token and after each guess; the caches.
    """
    if plan.draft == LOOKUP:
        return look_up(slots.text, slots.positions, drafts), None, slots.caches
    if plan.drafting_group is None:
        return slots.tokens[:, None][:, :0], None, slots.caches
    widths = [model.config.padded_vocab for model in plan.targets]
    start, group = newest_positions(plan, slots), plan.drafting_group

    def read(caches, tokens, positions):
        def one(model: Llama, weights, cache):
            inputs = plan.place(tokens, ("batch", None)), positions, cache, room
            return model.apply({"params": weights}, *inputs, method="decode")

        (logits,), caches = each_model(plan, params, caches, one, (group,))
        return logits[:, -1], caches

    def guess(logits, place):
        keys = row_keys(key, slots.requests, slots.generated + place)
        return choose(plan.sampling, _of_width(logits, min(widths), plan.vocab_size), keys)

    def step(carry, place):
        tokens, caches = carry
        logits, caches = read(caches, tokens[:, None], (start + place)[:, None])
        chosen = guess(logits, place)
        return (chosen, caches), (chosen, logits)

    if plan.draft != MODEL:
        (_, caches), (guessed, logits) = jax.lax.scan(
            step, (slots.tokens, slots.caches), jnp.arange(drafts + 1)
        )
        return guessed[:drafts].T, logits.swapaxes(0, 1), caches
    # The token in front of the newest is read with it: where all drafts of the round before were
    # kept, the last of them has not been.
    front = jnp.take_along_axis(slots.text, slots.positions[:, None] - 1, axis=1)
    tokens = jnp.concatenate([front, slots.tokens[:, None]], axis=1)
    positions = jnp.where(slots.active, slots.positions - 1, plan.length)[:, None] + jnp.arange(2)
    logits, caches = read(slots.caches, tokens, positions)
    if not drafts:  # plain decoding, which keeps the draft's cache
        return tokens[:, :0], None, caches
    first = guess(logits, 0)
    (_, caches), (guessed, _) = jax.lax.scan(step, (first, caches), jnp.arange(1, drafts))
    return jnp.concatenate([first[:, None], guessed.T], axis=1), None, caches


def _of_width(logits: jax.Array, width: int, vocab_size: int) -> jax.Array:
    """Logits [B, V] as the targets' are combined: of as many columns, for the same random noise."""
    missing = max(0, width - logits.shape[1])
    logits = jnp.pad(logits[:, :width], ((0, 0), (0, missing)), constant_values=-1e30)
    return jnp.where(jnp.arange(width) < vocab_size, logits, -1e30)


def look_up(text: jax.Array, positions: jax.Array, drafts: int) -> jax.Array:
    """What followed when the text's last tokens stood in it before.

    The place where the most of them stood counts, at most LOOKED_UP, and of several the last. What
    followed there may reach the text's end: from there on it is repeated.

    Args:
      text: [B, S] int32; positions: [B] int32, of each row's last token.

    Returns:
      [B, drafts] int32; any tokens where nothing occurs again.
    """
    length = text.shape[1]
    index = jnp.arange(length)
    alike = jnp.zeros(text.shape, jnp.int32)
    all_alike = jnp.ones(text.shape, bool)
    for back in range(LOOKED_UP):
        last = jnp.take_along_axis(text, jnp.maximum(positions - back, 0)[:, None], axis=1)
        same = jnp.pad(text, ((0, 0), (back, 0)))[:, :length] == last
        all_alike &= same & (index >= back) & (positions[:, None] >= back)
        alike += all_alike
    before = index < positions[:, None]
    place = jnp.argmax(jnp.where(before, alike * length + index, -1), axis=1)[:, None]
    ahead = jnp.arange(drafts) % jnp.maximum(positions[:, None] - place, 1)
    return jnp.take_along_axis(text, place + 1 + ahead, axis=1, mode="clip")
