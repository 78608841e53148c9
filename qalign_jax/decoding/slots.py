"""Decoding on the device: rows of a fixed batch, filled by prefill, advanced by one loop.

The compiled functions are specialised by a hashable `Plan`, so that engines of equal models
share programs. Shape letters as in models/llama.py; B counts slots here.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from qalign_jax.decoding.combine import Combine
from qalign_jax.decoding.plan import (
    Plan,
    abstract_caches,
    each_model,
    empty_caches,
    place_caches,
)
from qalign_jax.decoding.sampling import choose, row_keys
from qalign_jax.decoding.trace import Columns, trace_tokens
from qalign_jax.models.cache import read_prompts, write_prompts
from qalign_jax.models.llama import Llama
from qalign_jax.parallel.mesh import abstract_on


class Slots(struct.PyTreeNode):
    """The state of decoding, donated from call to call.

    A row's newest token is not in the caches yet: the next step reads it, at `positions`.
    """

    caches: tuple  # as plan.py's empty_caches
    tokens: jax.Array  # [B] int32, the newest token
    positions: jax.Array  # [B] int32, its position in the sequence
    requests: jax.Array  # [B] int32, the request's number, for its random key
    limits: jax.Array  # [B] int32, what `generated` may come to
    generated: jax.Array  # [B] int32, tokens of the request so far, EOS not among them
    matched: jax.Array  # [B] int32, characters of the stop string that the row ends with
    active: jax.Array  # [B] bool, neither idle nor finished
    outputs: jax.Array  # [B, S] int32, the tokens generated, at their positions
    traced: Columns | None  # [B, S], at the same positions; None where the plan traces nothing


def _place_slots(plan: Plan, slots: Slots) -> Slots:
    """Caches split over batch and heads; the rest on every device, for every host to read."""
    whole = jax.tree.map(
        lambda array: plan.place(array, (None,) * array.ndim), slots.replace(caches=())
    )
    return whole.replace(caches=place_caches(plan, slots.caches))


def abstract_slots(plan: Plan) -> Slots:
    """Slots on the plan's mesh as ShapeDtypeStructs with shardings: for compiling ahead."""
    shapes, mesh = jax.eval_shape(lambda: empty_slots(plan)), plan.mesh
    assert mesh, "slots are compiled ahead of time for a mesh"
    whole = shapes.replace(caches=())
    axes = jax.tree.map(lambda array: (None,) * array.ndim, whole)
    return abstract_on(mesh, whole, axes).replace(caches=abstract_caches(plan))


@functools.partial(jax.jit, static_argnames="plan")
def empty_slots(plan: Plan) -> Slots:
    """All slots idle."""
    row = jnp.zeros(plan.slots, jnp.int32)
    slots = Slots(
        caches=empty_caches(plan),
        tokens=row,
        positions=row,
        requests=row,
        limits=row,
        generated=row,
        matched=row,
        active=row.astype(bool),
        outputs=jnp.zeros((plan.slots, plan.length), jnp.int32),
        traced=Columns.empty((plan.slots, plan.length)) if plan.trace else None,
    )
    return _place_slots(plan, slots)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="slots")
def share_prefix(plan: Plan, params, slots: Slots, tokens) -> Slots:
    """Reads tokens [S'] that all prompts begin with, once, into the caches of all rows."""
    rows = jnp.arange(plan.slots)

    def read(model: Llama, weights, cache):
        last, kv = model.apply(
            {"params": weights}, tokens[None], jnp.full(1, len(tokens)), method="prefill"
        )
        kv = jax.tree.map(lambda one: jnp.repeat(one, plan.slots, axis=one.ndim - 4), kv)
        return last, write_prompts(model.config, cache, rows, 0, kv)

    caches = each_model(plan, params, slots.caches, read)[1]
    return slots.replace(caches=place_caches(plan, caches))


@functools.partial(jax.jit, static_argnames=("plan", "start"), donate_argnames="slots")
def fill(
    plan: Plan,
    start: int,
    params,
    combine: Combine,
    key,
    eos_ids,
    slots: Slots,
    tokens,
    lengths,
    rows,
    requests,
    generated,
    limits,
    stop_table=None,
) -> Slots:
    """Prefills prompts into slots and chooses the first token of each.

    A prompt may come in parts. Before its last part its limit is 0: the row stays idle.

    Args:
      start: how many tokens of every prompt are in the caches of its row.
      params: as hold_params of plan.py; combine: how the models' logits are combined.
      key: the random key of the whole run; eos_ids: [E] int32.
      tokens: [P, T] int32, right-padded, what comes behind the first `start` tokens.
      lengths, rows, requests, generated, limits: [P] int32. A row of `plan.slots` or more is
        padding of the prefill batch, and dropped. `generated` counts the tokens of the request's
        earlier turns.
      stop_table: of turns.py, [N + 1, V] int32, or None where no string ends a row.
    """
    tokens = plan.place(tokens, ("batch", None))

    def read(model: Llama, weights, cache):
        before = read_prompts(model.config, cache, rows, start) if start else None
        last, kv = model.apply({"params": weights}, tokens, lengths, before, method="prefill")
        return last, write_prompts(model.config, cache, rows, start, kv)

    logits, caches = each_model(plan, params, slots.caches, read)
    chosen, traced = _choose(plan, combine, logits, key, requests, generated)
    active = limits > generated
    kept, generated, active = _count(eos_ids, chosen, active, generated, limits)
    matched, active = _match(stop_table, chosen, jnp.zeros_like(lengths), active)
    first = jnp.where(kept, chosen, 0)
    ends = start + lengths

    def put(whole, new):
        return whole.at[rows].set(new, mode="drop")

    def put_token(whole, new):
        return whole.at[rows, ends].set(new, mode="drop")

    slots = Slots(
        caches=caches,
        tokens=put(slots.tokens, chosen),
        positions=put(slots.positions, ends),
        requests=put(slots.requests, requests),
        limits=put(slots.limits, limits),
        generated=put(slots.generated, generated),
        matched=put(slots.matched, matched),
        active=put(slots.active, active),
        outputs=put_token(slots.outputs, first),
        traced=jax.tree.map(put_token, slots.traced, traced),
    )
    return _place_slots(plan, slots)


@functools.partial(jax.jit, static_argnames=("plan", "room"), donate_argnames="slots")
def advance(
    plan: Plan,
    room: int,
    params,
    combine: Combine,
    key,
    eos_ids,
    slots: Slots,
    stop_at_active,
    max_steps,
    stop_table=None,
):
    """Decodes until at most `stop_at_active` rows are active, or for `max_steps` tokens.

    Args:
      room: how much of every cache is read: the positions of active rows stay below it.

    Returns:
      the slots, and for the host a copy of (active [B], generated [B], outputs [B, S], traced).
    """

    def unfinished(carry):
        steps, slots = carry
        return (steps < max_steps) & (slots.active.sum() > stop_at_active)

    def step(carry):
        steps, slots = carry
        return steps + 1, _step(plan, room, params, combine, key, eos_ids, stop_table, slots)

    _, slots = jax.lax.while_loop(unfinished, step, (jnp.int32(0), slots))
    slots = _place_slots(plan, slots)  # a loop's result has no constraint of its own
    return slots, (slots.active, slots.generated, slots.outputs, slots.traced)


def _step(plan: Plan, room: int, params, combine, key, eos_ids, stop_table, slots: Slots) -> Slots:
    # idle rows write past the cache's end, where writes are dropped
    positions = jnp.where(slots.active, slots.positions, plan.length)
    tokens = plan.place(slots.tokens, ("batch",))

    def read(model: Llama, weights, cache):
        inputs = tokens[:, None], positions[:, None], cache, room
        new, cache = model.apply({"params": weights}, *inputs, method="decode")
        return new[:, 0], cache

    logits, caches = each_model(plan, params, slots.caches, read)
    chosen, traced = _choose(plan, combine, logits, key, slots.requests, slots.generated)
    kept, generated, active = _count(eos_ids, chosen, slots.active, slots.generated, slots.limits)
    matched, active = _match(stop_table, chosen, slots.matched, active)
    column = jnp.where(kept, slots.positions + 1, plan.length)

    def put(whole, new):
        return whole.at[jnp.arange(plan.slots), column].set(new, mode="drop")

    outputs, traced = jax.tree.map(put, (slots.outputs, slots.traced), (chosen, traced))
    slots = slots.replace(
        caches=caches,
        tokens=chosen,
        positions=slots.positions + 1,
        generated=generated,
        matched=matched,
        active=active,
        outputs=outputs,
        traced=traced,
    )
    return _place_slots(plan, slots)


def _choose(
    plan: Plan, combine: Combine, logits, key, requests, counts
) -> tuple[jax.Array, Columns | None]:
    combined = combine(logits, plan.vocab_size)
    chosen = choose(plan.sampling, combined, row_keys(key, requests, counts))
    if not plan.trace:
        return chosen, None
    return chosen, trace_tokens(logits[0], combined, chosen, plan.vocab_size)


def _count(eos_ids, chosen, active, generated, limits):
    """Which rows keep the chosen token, their new counts, and which stay active."""
    kept = active & ~(chosen[:, None] == eos_ids).any(axis=1)
    generated = generated + kept
    return kept, generated, kept & (generated < limits)


def _match(stop_table, chosen, matched, active):
    """How much of the stop string each row ends with now, and which rows stay active."""
    if stop_table is None:
        return matched, active
    matched = stop_table[matched, chosen]
    return matched, active & (matched < len(stop_table) - 1)
