"""Choosing the next token from logits: greedy, or by temperature and then top-p."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Temperature 0 takes the most probable token; else logits are divided by it, and of the
    tokens only the most probable are kept that together reach a probability of `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature {self.temperature}: expected 0 (greedy) or a positive number"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p}: expected a number above 0 and at most 1")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed {self.seed}: expected a whole number from 0 to 2^31 - 1")


def row_keys(key: jax.Array, requests: jax.Array, counts: jax.Array) -> jax.Array:
    """A key a row that depends on its request and its count of tokens so far, and on no slot.

    Args:
      requests, counts: [B] int32.
    """

    def one(request, count):
        return jax.random.fold_in(jax.random.fold_in(key, request), count)

    return jax.vmap(one)(requests, counts)


def choose(sampling: Sampling, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """The next token of every row, [B] int32.

    A key's noise belongs to the ids: of two distributions, the likelier they are to agree, the
    likelier is one choice of both with one key. Drafts rest on that (speculative.py).

    Args:
      logits: [B, V] f32; keys: [B] random keys, unused when greedy.
    """
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_p == 1.0:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    order = jnp.argsort(logits, axis=-1, descending=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # the most probable stays, however its own share was rounded
    kept = (before < sampling.top_p).at[:, 0].set(True)
    kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
    return jax.vmap(jax.random.categorical)(keys, jnp.where(kept, logits, -jnp.inf)).astype(
        jnp.int32
    )
