"""Log-likelihoods of given continuations, such as the choices of a question, in packed rows.

Continuations of one prompt that differ in their last token alone, as letters do, share a segment.
"""

import collections
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qalign_jax.data.packing import packed_rows
from qalign_jax.decoding.combine import Combine
from qalign_jax.decoding.plan import Plan, each_model
from qalign_jax.parallel.mesh import batch_shards

ROW_LENGTH = 512  # unless one segment alone is longer
POSITIONS = 8192  # of a pass, at least one row
_COLUMNS = 32  # scored positions of a row come in multiples of this


class Continuation(NamedTuple):
    """The ids of a prompt and what follows it, BOS in front, and the length of the prompt."""

    ids: Sequence[int]
    prompt: int


def log_likelihoods(
    plan: Plan, params, combine: Combine, continuations: Sequence[Continuation]
) -> Iterator[tuple[int, float]]:
    """Yields (index, log-likelihood in nats of what follows the prompt), in any order.

    One compiled program scores all of them; EOS behind a continuation is not scored.

    Args:
      plan: models and mesh, as of an `Engine`.
      params: a tree a model; combine: how their logits are combined.

    Raises:
      ValueError: at once: nothing follows a prompt, or it has more tokens than the models take.
    """
    longest = min(model.config.max_length for model in plan.targets)
    for index, (ids, prompt) in enumerate(continuations):
        if not 0 < prompt < len(ids) <= longest + 1:
            raise ValueError(
                f"continuation {index} has {len(ids)} tokens, {prompt} of them its prompt's; "
                f"expected 1 or more of each and at most {longest + 1} in all"
            )
    return _passes(plan, params, combine, continuations)


def _passes(plan, params, combine, continuations) -> Iterator[tuple[int, float]]:
    if not continuations:
        return
    # input tokens -> the continuations that have these
    sharing: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for index, (ids, _) in enumerate(continuations):
        sharing[tuple(ids[:-1])].append(index)
    segments = list(sharing)
    sizes = np.array([len(segment) for segment in segments])
    length = -(-max(ROW_LENGTH, int(sizes.max())) // ROW_LENGTH) * ROW_LENGTH
    rows = packed_rows(np.arange(len(segments)), sizes, length)
    filled = [_row(row, segments, sharing, continuations, length) for row in rows]
    columns = -(-max(len(row.owners) for row in filled) // _COLUMNS) * _COLUMNS
    shards = batch_shards(plan.mesh) if plan.mesh else 1
    batch = max(1, min(POSITIONS // length, len(rows)) // shards) * shards
    for start in range(0, len(filled), batch):
        part = filled[start : start + batch]
        arrays = {
            "tokens": np.zeros((batch, length), np.int32),
            "positions": np.zeros((batch, length), np.int32),
            "segment_ids": np.zeros((batch, length), np.int32),
            "columns": np.zeros((batch, columns), np.int32),
            "targets": np.zeros((batch, columns), np.int32),
        }
        for i, row in enumerate(part):
            for name, values in zip(arrays, row[:-1], strict=True):
                arrays[name][i, : len(values)] = values
        scores = jax.device_get(_score(plan, params, combine, **arrays))
        for i, row in enumerate(part):
            for index in dict.fromkeys(row.owners):
                own = np.flatnonzero(np.asarray(row.owners) == index)
                yield index, float(scores[i, own].sum(dtype=np.float64))


class _Row(NamedTuple):
    """One packed row, unpadded; `owners` are the continuations that the scored columns count to."""

    tokens: list[int]
    positions: list[int]
    segment_ids: list[int]
    columns: list[int]
    targets: list[int]
    owners: list[int]


def _row(row, segments, sharing, continuations, length) -> _Row:
    made = _Row([], [], [], [], [], [])
    for number, segment in enumerate(row, 1):
        first = len(made.tokens)
        tokens = segments[segment]
        made.tokens.extend(tokens)
        made.positions.extend(range(len(tokens)))
        made.segment_ids.extend([number] * len(tokens))
        for index in sharing[tokens]:
            ids, prompt = continuations[index]
            made.columns.extend(range(first + prompt - 1, first + len(tokens)))
            made.targets.extend(ids[prompt:])
            made.owners.extend([index] * (len(ids) - prompt))
    assert len(made.tokens) <= length
    return made


@functools.partial(jax.jit, static_argnames="plan")
def _score(
    plan: Plan, params, combine, tokens, positions, segment_ids, columns, targets
) -> jax.Array:
    """Log-probabilities [B, C] f32 of `targets` after the tokens at `columns`; whole on every host.

    Args:
      tokens, positions, segment_ids: [B, T] int32; columns, targets: [B, C] int32.
    """
    tokens = plan.place(tokens, ("batch", None))

    def read(model, weights, cache):
        whole: Any = model.apply(
            {"params": weights}, tokens, positions, segment_ids, columns, method="logits_at"
        )
        return whole.reshape(-1, whole.shape[-1]), cache

    logits, _ = each_model(plan, params, None, read, plan.target_groups)
    combined = combine(logits, plan.vocab_size)
    chosen = jnp.take_along_axis(combined, targets.reshape(-1, 1), axis=-1)[:, 0]
    scores = (chosen - jax.nn.logsumexp(combined, axis=-1)).reshape(targets.shape)
    return plan.place(scores, (None, None))
