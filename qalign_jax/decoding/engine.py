"""The one decode engine: requests wait, slots are filled, the compiled loop runs, rows finish.

Evaluation, the `generate` command and proxy-tuning all decode here.
"""

import collections
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from qalign_jax.decoding.combine import Combine, FirstModel
from qalign_jax.decoding.draft_length import (
    AUTO,
    DraftLength,
    check_draft_tokens,
    draft_kind,
    named_kind,
)
from qalign_jax.decoding.likelihood import Continuation, log_likelihoods
from qalign_jax.decoding.memory import free_bytes, with_slots
from qalign_jax.decoding.plan import (
    MODEL,
    Plan,
    hold_params,
    make_plan,
    shares_weights,
    with_room,
)
from qalign_jax.decoding.requests import Generated, Request, Rows, Streamed, common_prefix
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.slots import advance, empty_slots, fill, share_prefix
from qalign_jax.decoding.speculative import Drafted
from qalign_jax.decoding.turns import Conversations
from qalign_jax.models.llama import Llama

# The loop returns to the host after at most this many tokens, to hand over what finished.
STEPS_PER_CALL = 64
# With turns it returns sooner: rows that stopped and rows that were replied to wait for it.
STEPS_PER_CALL_IN_TURNS = 16
# Of a stream it returns with fewer tokens a row, which a reader sees together.
STEPS_PER_CALL_IN_STREAMS = 8
# Where answers are wanted in order, prompts are sorted by length within so many a slot.
SORTED_PER_SLOT = 4


class Engine:
    """Decodes prompts with one model, or with several whose logits are combined every step.

    An engine keeps the parameters; caches live as long as one `generate`.
    """

    def __init__(
        self,
        models: Sequence[tuple[Llama, dict]],
        combine: Combine = FirstModel(),
        *,
        eos_ids: Sequence[int],
        mesh: Mesh | None = None,
        slots: int = 64,
        sampling: Sampling = Sampling(),
        trace: bool = False,
        weights_dtype: str = "",
        cache_dtype: str = "",
        apart: bool | None = None,
        draft: tuple[Llama, dict] | Literal["lookup"] | None = None,
        draft_tokens: int | str = AUTO,
    ):
        """Takes models as (module, params) pairs.

        Matrices are kept in the compute dtype or in int8: a decode step reads every one of them, so
        f32 weights under bf16 products would double its time. Where the expert is the anti-expert
        with an adapter, on the same arrays (`attach` of models/adapter.py), they are kept once, and
        read once for both unless the expert drafts.

        Args:
          combine: FirstModel(), or ProxyTuning(alpha) for (large, expert, anti-expert).
          eos_ids: any of these ends an answer.
          mesh: where caches are split over batch and key-value heads, and parameters by the
            sharding table; None decodes on one device.
          slots: rows decoded at once, rounded up to a multiple of the mesh's batch shards; 0 takes
            as many as memory holds, at most memory.MOST_SLOTS.
          trace: whether answers are traced (trace.py); their ids are the same.
          weights_dtype: "int8" holds the layers' matrices so (models/quantization.py).
          cache_dtype: "int8" holds keys and values so.
          apart: whether layers are decoded one by one or in a loop; by default what suits the
            devices (plan.py).
          draft: what drafts tokens (speculative.py), another model as (module, params) or "lookup",
            the row's own text; by default the expert of ProxyTuning, and of FirstModel nothing.
          draft_tokens: drafts a round; 0 is plain decoding, "auto" what is fastest by a model of
            the devices and the drafts kept so far (draft_length.py).

        Raises:
          ValueError: a number of models that `combine` does not take, fewer than 0 slots,
            key-value heads that the mesh's tensor axis does not divide, another dtype than "int8",
            `draft_tokens` out of range, or some of them where nothing drafts.
        """
        models = list(models)
        if len(models) != combine.models:
            raise ValueError(
                f"{type(combine).__name__} takes {combine.models} models, {len(models)} were given"
            )
        self._combine = combine
        self._draft_tokens = check_draft_tokens(draft_tokens)
        kind = draft_kind(named_kind(draft), len(models), self._draft_tokens)
        if kind == MODEL and isinstance(draft, tuple):
            models.append(draft)
        modules = tuple(module for module, _ in models)
        shared = shares_weights(models[: combine.models])
        self._plan = make_plan(
            modules, sampling, mesh, slots,
            weights_dtype=weights_dtype, cache_dtype=cache_dtype, apart=apart, trace=trace,
            draft=kind, shared=shared,
        )  # fmt: skip
        self.max_length = min(module.config.max_length for module in self._plan.targets)
        self._params = hold_params(self._plan, [params for _, params in models])
        self._seed = sampling.seed
        self._eos_ids = np.asarray(eos_ids, np.int32)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        numbers: Sequence[int] | None = None,
        conversations: Conversations | None = None,
        in_order: bool = False,
    ) -> Iterator[Generated]:
        """Decodes prompts; yields answers as rows finish, in any order.

        A prompt for which the model's length leaves fewer than `max_new_tokens` gets as many as
        there is room for, with one warning. Answers do not depend on slots or neighbours.

        With `conversations` an answer has turns. A row that ends gives its slot away until it is
        replied to, and goes on with its next prompt and up to `max_new_tokens` again; its answer
        ends where that prompt leaves no room. It has the ids of all turns.

        Args:
          prompts: token ids, BOS included.
          numbers: of the prompts, 0, 1, ... by default. A number is yielded with its answer and
            seeds its samples, so that a part decoded later samples the same.
          conversations: of the prompts, by their numbers.
          in_order: begins prompts in about their order, and not the longest first, which decodes
            somewhat faster.

        Raises:
          ValueError: at once, before any work: an empty prompt, one that fills the model's
            length, an id outside the vocabulary, `max_new_tokens` below 1; caches that do not fit
            in memory beside the weights.
        """
        steps = STEPS_PER_CALL_IN_TURNS if conversations else STEPS_PER_CALL
        events = self._events(prompts, max_new_tokens, numbers, conversations, in_order, steps)
        return (event.answer for event in events if event.answer)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[Streamed]:
        """Decodes prompts, in about their order; yields the tokens of running rows as they come.

        The answers are those of `generate`, as are arguments and errors. Closing the iterator ends
        the decoding and frees the caches.
        """
        steps = STEPS_PER_CALL_IN_STREAMS
        return self._events(prompts, max_new_tokens, numbers, None, True, steps)

    def with_combine(self, combine: Combine) -> "Engine":
        """An engine of the same weights and programs, whose logits are combined with another alpha.

        Raises:
          ValueError: a `combine` of another kind.
        """
        if type(combine) is not type(self._combine):
            raise ValueError(
                f"{type(combine).__name__} in place of {type(self._combine).__name__}; make an "
                "engine of its models"
            )
        other = copy.copy(self)
        other._combine = combine
        return other

    def with_options(
        self, *, slots: int = 64, sampling: Sampling = Sampling(), trace: bool = False
    ) -> "Engine":
        """An engine of the same weights with other options, as of a new one.

        Raises:
          ValueError: fewer than 0 slots.
        """
        other, plan = copy.copy(self), self._plan
        other._plan = make_plan(
            plan.models, sampling, plan.mesh, slots, weights_dtype=plan.weights_dtype,
            cache_dtype=plan.cache_dtype, apart=plan.apart, trace=trace, draft=plan.draft,
            shared=plan.shared,
        )  # fmt: skip
        other._seed = sampling.seed
        return other

    def _events(
        self, prompts, max_new_tokens, numbers, conversations, in_order, steps
    ) -> Iterator[Streamed]:
        numbers = range(len(prompts)) if numbers is None else numbers
        requests = self._requests(prompts, max_new_tokens, numbers)
        if not requests:
            return iter(())
        room = conversations.turns.room(max_new_tokens) if conversations else 0
        longest = max(len(request.prompt) + max(request.limit, room) for request in requests)
        plan = with_room(self._plan, longest)
        plan = with_slots(plan, len(requests), free_bytes(plan))
        # neighbours in a prefill are of like length, and the longest do not come last
        window = SORTED_PER_SLOT * plan.slots if in_order else len(requests)
        order = sorted(range(len(requests)), key=lambda i: (i // window, -len(requests[i].prompt)))
        requests = [requests[i] for i in order]
        return self._run(plan, requests, max_new_tokens, conversations, steps)

    def log_likelihoods(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, float]]:
        """As decoding/likelihood.py's `log_likelihoods`, with the engine's models."""
        return log_likelihoods(self._plan, self._params, self._combine, continuations)

    def _requests(self, prompts, max_new_tokens, numbers) -> list[Request]:
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens {max_new_tokens}: expected a whole number, at least 1"
            )
        requests, short = [], []
        for number, prompt in zip(numbers, prompts, strict=True):
            if not len(prompt):
                raise ValueError(f"prompt {number} is empty; give it at least the BOS token")
            room = self.max_length - len(prompt)
            if room < 1:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens, but the models' max_length is "
                    f"{self.max_length} and an answer needs room; shorten or leave out the prompt"
                )
            low, high = min(prompt), max(prompt)
            if low < 0 or high >= self._plan.vocab_size:
                raise ValueError(
                    f"prompt {number} has the id {low if low < 0 else high}, outside the "
                    f"vocabulary of {self._plan.vocab_size} ids that all models have; is the "
                    "tokenizer another model's?"
                )
            if room < max_new_tokens:
                short.append(number)
            requests.append(Request(number, prompt, min(max_new_tokens, room)))
        if short:
            logging.warning(
                "%d prompts (the first is %s) leave room for fewer than %d new tokens in "
                "max_length %d; their answers may be cut",
                len(short), short[0], max_new_tokens, self.max_length,
            )  # fmt: skip
        return requests

    def _run(
        self,
        plan: Plan,
        requests: list[Request],
        max_new_tokens: int,
        conversations: Conversations | None,
        steps: int,
    ) -> Iterator[Streamed]:
        key = jax.random.key(self._seed)
        constant = (self._params, self._combine, key, self._eos_ids)
        stop_table = None
        if conversations:
            stop_table = jnp.asarray(conversations.stop_table(plan.vocab_size))
        # a reply's prompt may begin with other ids; what follows a prefix reads it from the cache,
        # so that in int8 an answer would depend on what other prompts begin with
        prefix = [] if conversations or plan.cache_dtype else common_prefix(requests)
        slots = empty_slots(plan)
        if prefix:
            slots = share_prefix(plan, self._params, slots, np.asarray(prefix, np.int32))
        rows = Rows(plan, len(prefix), requests)
        draft_length = DraftLength(plan, self._draft_tokens)
        paused: dict[int, Request] = {}  # by number, until they are replied to
        counts: dict[int, Drafted] = collections.defaultdict(Drafted.nothing)  # by number
        news: list[Streamed] = []
        while rows.busy or paused:
            if conversations and paused:
                replied = conversations.ready(plan.length, max_new_tokens, wait=not rows.busy)
                for number, prompt in replied:
                    request = paused.pop(number)
                    if prompt is None:
                        news.append(request.ended([]))
                    else:  # in front, so that few answers are begun and not ended
                        limit = min(max_new_tokens, plan.length - len(prompt))
                        rows.wait_in_front(dataclasses.replace(request, prompt=prompt, limit=limit))
            for start, part in rows.parts():
                slots = fill(plan, start, *constant, slots, **part, stop_table=stop_table)
            drafts = draft_length.next(rows.longest)
            room, stop_at_active, rounds = rows.next_rounds(steps, drafts)
            until = stop_at_active, rounds
            slots, report = advance(plan, room, drafts, *constant, slots, *until, stop_table)
            yield from news  # the device works meanwhile
            news = []
            active, generated, texts, traced, drafted = jax.device_get(report)
            if drafted:
                draft_length.add(jax.tree.map(np.sum, drafted))
            for row, request in list(rows.running.items()):
                if drafted:
                    own = jax.tree.map(lambda count, row=row: int(count[row]), drafted)
                    counts[request.number] += own
                start, before = len(request.prompt), len(request.before)
                turn = row, slice(start, start + generated[row] - before)
                ids = texts[turn].tolist()
                new = rows.take(row, ids, bool(active[row]))
                if active[row]:
                    news.append(Streamed(request.number, new))
                    continue
                part = jax.tree.map(lambda column, turn=turn: column[turn], traced)
                request = dataclasses.replace(
                    request,
                    before=[*request.before, *ids],
                    traced=[*request.traced, part],
                    drafted=counts[request.number] if drafted else None,
                )
                if conversations and conversations.ended(request.number, ids):
                    paused[request.number] = request
                    news.append(Streamed(request.number, new))
                else:
                    news.append(request.ended(new))
                    counts.pop(request.number, None)
        yield from news
