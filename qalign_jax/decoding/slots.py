"""Decoding on the device: rows of a fixed batch, filled by prefill, advanced by one loop.

Every turn of the loop is a round: some tokens are drafted, none in plain decoding, all are judged
in one pass of the models whose logits count, and those are kept that they would have chosen, and
one token more.

The compiled functions are specialised by a hashable `Plan`, so that engines of equal models
share programs. Shape letters as in models/llama.py; B counts slots here.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from qalign_jax.decoding import speculative
from qalign_jax.decoding.combine import Combine
from qalign_jax.decoding.plan import (
    Plan,
    abstract_caches,
    each_model,
    empty_caches,
    place_caches,
)
from qalign_jax.decoding.sampling import choose, row_keys
from qalign_jax.decoding.speculative import Drafted
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
    text: jax.Array  # [B, S] int32, the tokens of prompt and answer, at their positions
    traced: Columns | None  # [B, S], at the same positions; None where the plan traces nothing
    drafted: Drafted | None  # [B], of one call of `advance`; None where the plan has no draft


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
        text=jnp.zeros((plan.slots, plan.length), jnp.int32),
        traced=Columns.empty((plan.slots, plan.length)) if plan.trace else None,
        drafted=Drafted.none(plan.slots) if plan.draft else None,
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
    text = slots.text.at[:, : len(tokens)].set(tokens)
    return slots.replace(caches=place_caches(plan, caches), text=text)


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
    logits = logits[: len(plan.targets)]
    chosen, traced = _choose(plan, combine, logits, key, requests, generated)
    active = limits > generated
    kept, generated, active = _count(eos_ids, chosen, active, generated, limits)
    matched, active = _match(stop_table, chosen, jnp.zeros_like(lengths), active)
    first = jnp.where(kept, chosen, 0)
    ends = start + lengths
    part = start + jnp.arange(tokens.shape[1])
    text = slots.text.at[rows[:, None], part].set(tokens, mode="drop")

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
        text=put_token(text, first),
        traced=jax.tree.map(put_token, slots.traced, traced),
        drafted=slots.drafted,
    )
    return _place_slots(plan, slots)


@functools.partial(jax.jit, static_argnames=("plan", "room", "drafts"), donate_argnames="slots")
def advance(
    plan: Plan,
    room: int,
    drafts: int,
    params,
    combine: Combine,
    key,
    eos_ids,
    slots: Slots,
    stop_at_active,
    max_rounds,
    stop_table=None,
):
    """Decodes until at most `stop_at_active` rows are active, or for `max_rounds` rounds.

    Args:
      room: how much of every cache is read: what active rows read lies below it.
      drafts: tokens that are drafted in a round; 0 decodes a token a round.

    Returns:
      the slots, and for the host a copy of (active [B], generated [B], text [B, S], traced,
      drafted [B]).
    """

    def unfinished(carry):
        rounds, slots = carry
        return (rounds < max_rounds) & (slots.active.sum() > stop_at_active)

    def step(carry):
        rounds, slots = carry
        arguments = params, combine, key, eos_ids, stop_table, slots
        return rounds + 1, _round(plan, room, drafts, *arguments)

    if slots.drafted is not None:
        slots = slots.replace(drafted=Drafted.none(plan.slots))
    _, slots = jax.lax.while_loop(unfinished, step, (jnp.int32(0), slots))
    slots = _place_slots(plan, slots)  # a loop's result has no constraint of its own
    return slots, (slots.active, slots.generated, slots.text, slots.traced, slots.drafted)


def _round(
    plan: Plan, room: int, drafts: int, params, combine, key, eos_ids, stop_table, slots: Slots
) -> Slots:
    guessed, own_logits, caches = speculative.draft(plan, room, drafts, params, key, slots)
    width = drafts + 1
    tokens = jnp.concatenate([slots.tokens[:, None], guessed], axis=1)
    tokens = plan.place(tokens, ("batch", None))
    positions = speculative.newest_positions(plan, slots)[:, None] + jnp.arange(width)

    def read(model: Llama, weights, cache):
        inputs = tokens, positions, cache, room
        return model.apply({"params": weights}, *inputs, method="decode")

    judges = [place for place in range(len(plan.groups)) if place != plan.drafting_group]
    logits, caches = each_model(plan, params, caches, read, judges)
    if own_logits is not None and plan.drafting is not None:  # what drafts judges too
        logits.insert(plan.drafting, own_logits)
    counts = slots.generated[:, None] + jnp.arange(width)
    flat = [each.reshape(-1, each.shape[-1]) for each in logits]
    requests = jnp.repeat(slots.requests, width)
    chosen, traced = _choose(plan, combine, flat, key, requests, counts.reshape(-1))
    chosen, traced = jax.tree.map(lambda each: each.reshape(-1, width), (chosen, traced))
    slots, columns = _accept(plan, guessed, chosen, eos_ids, stop_table, slots)

    def put(whole, new):
        return whole.at[jnp.arange(plan.slots)[:, None], columns].set(new, mode="drop")

    text, traced = jax.tree.map(put, (slots.text, slots.traced), (chosen, traced))
    return _place_slots(plan, slots.replace(caches=caches, text=text, traced=traced))


def _accept(
    plan: Plan, guessed, chosen, eos_ids, stop_table, slots: Slots
) -> tuple[Slots, jax.Array]:
    """Takes the chosen tokens up to the first that was not guessed, or that ends the answer.

    Args:
      guessed: [B, k] int32; chosen: [B, k + 1] int32, each after the guesses in front of it.

    Returns:
      the slots with all but caches, text and trace as they are then, and the positions [B, k + 1]
      of the tokens, S where a token is not the answer's.
    """
    columns, drafts = [], guessed.shape[1]
    taken, active, drafted = slots.active, slots.active, slots.drafted
    generated, matched = slots.generated, slots.matched
    tokens, positions = slots.tokens, slots.positions
    for place in range(drafts + 1):
        own = chosen[:, place]
        kept, generated, goes_on = _count(eos_ids, own, taken, generated, slots.limits)
        now_matched, goes_on = _match(stop_table, own, matched, goes_on)
        matched = jnp.where(taken, now_matched, matched)
        active = jnp.where(taken, goes_on, active)
        columns.append(jnp.where(kept, positions + 1, plan.length))
        tokens, positions = jnp.where(taken, own, tokens), positions + taken
        guess = guessed[:, place] if place < drafts else None
        if drafted is not None:
            drafted = drafted.after(taken, own, guess, first=place == 0)
        if guess is not None:
            taken = goes_on & (own == guess)
    slots = slots.replace(
        tokens=tokens, positions=positions, generated=generated, matched=matched, active=active,
        drafted=drafted,
    )  # fmt: skip
    return slots, jnp.stack(columns, axis=1)


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
