"""The one decode engine: requests wait, slots are filled, the compiled loop runs, rows finish.

Evaluation, the `generate` command and proxy-tuning all decode here.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from qalign_jax.decoding.combine import Combine, FirstModel
from qalign_jax.decoding.likelihood import Continuation, log_likelihoods
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.slots import Plan, advance, empty_slots, fill
from qalign_jax.decoding.trace import Columns
from qalign_jax.decoding.turns import Conversations
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import cast_params, param_specs
from qalign_jax.parallel.mesh import batch_shards, on_mesh

# The loop returns to the host after at most this many tokens, to hand over what finished.
STEPS_PER_CALL = 64
# With turns it returns sooner: rows that stopped and rows that were replied to wait for it.
STEPS_PER_CALL_IN_TURNS = 16
# The most positions of a prefill, unless one prompt alone has more.
PREFILL_POSITIONS = 8192
# Caches grow in these steps, so that similar runs share a program.
LENGTH_MULTIPLE = 64


class Generated(NamedTuple):
    """The answer to a prompt: the prompt's number, the ids without EOS, their trace."""

    number: int
    tokens: list[int]
    traced: Columns | None = None


@dataclasses.dataclass(frozen=True)
class _Request:
    number: int
    prompt: Sequence[int]
    limit: int
    before: Sequence[int] = ()  # the ids that the answer's earlier turns generated
    traced: Sequence[Columns | None] = ()  # of each of these turns

    def generated(self) -> Generated:
        traced = jax.tree.map(lambda *turns: np.concatenate(turns), *self.traced)
        return Generated(self.number, list(self.before), traced)


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
    ):
        """Takes models as (module, params) pairs.

        Matrices are kept in the compute dtype: a decode step reads every one of them, so f32
        weights under bf16 products would double its time.

        Args:
          combine: FirstModel(), or ProxyTuning(alpha) for (large, expert, anti-expert).
          eos_ids: any of these ends an answer.
          mesh: where caches are split over batch and key-value heads, and parameters by the
            sharding table; None decodes on one device.
          slots: rows decoded at once, rounded up to a multiple of the mesh's batch shards.
          trace: whether answers are traced (trace.py); their ids are the same.

        Raises:
          ValueError: a number of models that `combine` does not take, no slots, key-value heads
            that the mesh's tensor axis does not divide.
        """
        modules = tuple(module for module, _ in models)
        self._plan = make_plan(modules, combine, sampling, mesh, slots, trace)
        self.max_length = min(module.config.max_length for module in modules)
        self._params = tuple(_held_params(module, params, mesh) for module, params in models)
        self._seed = sampling.seed
        self._eos_ids = np.asarray(eos_ids, np.int32)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        numbers: Sequence[int] | None = None,
        conversations: Conversations | None = None,
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

        Raises:
          ValueError: at once, before any work: an empty prompt, one that fills the model's
            length, an id outside the vocabulary, `max_new_tokens` below 1.
        """
        numbers = range(len(prompts)) if numbers is None else numbers
        requests = self._requests(prompts, max_new_tokens, numbers)
        if not requests:
            return iter(())
        room = conversations.turns.room(max_new_tokens) if conversations else 0
        longest = max(len(request.prompt) + max(request.limit, room) for request in requests)
        plan = with_room(self._plan, longest)
        return self._run(plan, requests, max_new_tokens, conversations)

    def log_likelihoods(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, float]]:
        """As decoding/likelihood.py's `log_likelihoods`, with the engine's models."""
        return log_likelihoods(self._plan, self._params, continuations)

    def _requests(self, prompts, max_new_tokens, numbers) -> list[_Request]:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {max_new_tokens}: expected at least 1")
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
            requests.append(_Request(number, prompt, min(max_new_tokens, room)))
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
        requests: list[_Request],
        max_new_tokens: int,
        conversations: Conversations | None,
    ) -> Iterator[Generated]:
        # neighbours in a prefill are of like length, and the longest do not come last
        waiting = collections.deque(sorted(requests, key=lambda r: -len(r.prompt)))
        constant = (plan, self._params, jax.random.key(self._seed), self._eos_ids)
        steps, stop_table = STEPS_PER_CALL, None
        if conversations:
            steps = STEPS_PER_CALL_IN_TURNS
            stop_table = jnp.asarray(conversations.stop_table(plan.vocab_size))
        slots = empty_slots(plan)
        running: dict[int, _Request] = {}
        paused: dict[int, _Request] = {}  # by number, until they are replied to
        idle = list(range(plan.slots))
        finished = []
        while waiting or running or paused:
            if conversations and paused:
                nothing_else = not (waiting or running)
                replied = conversations.ready(plan.length, max_new_tokens, wait=nothing_else)
                for number, prompt in replied:
                    request = paused.pop(number)
                    if prompt is None:
                        finished.append(request.generated())
                    else:  # in front, so that few answers are begun and not ended
                        limit = min(max_new_tokens, plan.length - len(prompt))
                        request = dataclasses.replace(request, prompt=prompt, limit=limit)
                        waiting.appendleft(request)
            while waiting and len(idle) >= self._group_size(plan, waiting):
                group = [waiting.popleft() for _ in range(self._group_size(plan, waiting))]
                rows = [idle.pop() for _ in group]
                running.update(zip(rows, group, strict=True))
                prefill = self._prefill(plan, group, rows)
                slots = fill(*constant, slots, **prefill, stop_table=stop_table)
            wanted = self._group_size(plan, waiting) if waiting else plan.slots
            slots, report = advance(*constant, slots, plan.slots - wanted, steps, stop_table)
            yield from finished  # the device works meanwhile
            finished = []
            active, generated, outputs, traced = jax.device_get(report)
            rows = [row for row in running if not active[row]]
            for row in rows:
                request = running.pop(row)
                start, before = len(request.prompt), len(request.before)
                turn = row, slice(start, start + generated[row] - before)
                ids = outputs[turn].tolist()
                part = jax.tree.map(lambda column, turn=turn: column[turn], traced)
                request = dataclasses.replace(
                    request, before=[*request.before, *ids], traced=[*request.traced, part]
                )
                if conversations and conversations.ended(request.number, ids):
                    paused[request.number] = request
                else:
                    finished.append(request.generated())
            idle.extend(rows)
        yield from finished

    def _group_size(self, plan: Plan, waiting) -> int:
        most, _ = prefill_shape(plan, 1)
        longest = max(len(request.prompt) for request in itertools.islice(waiting, most))
        return min(len(waiting), prefill_shape(plan, longest)[0])

    def _prefill(self, plan: Plan, group: list[_Request], rows: list[int]) -> dict:
        """The arguments of `fill`; rows past the group's end are dropped there."""
        width, bucket = prefill_shape(plan, max(len(request.prompt) for request in group))
        arrays = dict(
            tokens=np.zeros((width, bucket), np.int32),
            lengths=np.ones(width, np.int32),
            rows=np.full(width, plan.slots, np.int32),
            requests=np.zeros(width, np.int32),
            generated=np.zeros(width, np.int32),
            limits=np.zeros(width, np.int32),
        )
        for i, (request, row) in enumerate(zip(group, rows, strict=True)):
            arrays["tokens"][i, : len(request.prompt)] = request.prompt
            arrays["lengths"][i] = len(request.prompt)
            arrays["rows"][i] = row
            arrays["requests"][i] = request.number
            arrays["generated"][i] = len(request.before)
            arrays["limits"][i] = len(request.before) + request.limit
        return arrays


def make_plan(
    models: tuple[Llama, ...],
    combine: Combine,
    sampling: Sampling,
    mesh: Mesh | None,
    slots: int,
    trace: bool = False,
) -> Plan:
    """What an `Engine` of these models compiles, for caches of no length yet (`with_room`).

    Raises:
      ValueError: as `Engine`.
    """
    if len(models) != combine.models:
        raise ValueError(
            f"{type(combine).__name__} takes {combine.models} models, {len(models)} were given"
        )
    if slots < 1:
        raise ValueError(f"slots {slots}: expected at least 1")
    tensor = mesh.shape["tensor"] if mesh else 1
    for model in models:
        if model.config.n_kv_heads % tensor:
            raise ValueError(
                f"{model.config.n_kv_heads} key-value heads cannot be split over tensor:{tensor}; "
                "choose a tensor size that divides them"
            )
    slots = _round_up(slots, batch_shards(mesh) if mesh else 1)
    sampling = dataclasses.replace(sampling, seed=0)
    return Plan(models, combine, sampling, mesh, slots, length=0, trace=trace)


def with_room(plan: Plan, longest: int) -> Plan:
    """The plan with caches for prompts and answers that together have up to `longest` tokens."""
    most = min(model.config.max_length for model in plan.models)
    return dataclasses.replace(plan, length=min(_round_up(longest, LENGTH_MULTIPLE), most))


def prefill_shape(plan: Plan, prompt_length: int) -> tuple[int, int]:
    """Rows and positions of the prefill that takes prompts of up to this length."""
    bucket = min(_bucket(prompt_length), plan.length)
    width = min(-(-plan.slots // 8), max(1, PREFILL_POSITIONS // bucket))
    return _round_up(width, batch_shards(plan.mesh) if plan.mesh else 1), bucket


def _held_params(model: Llama, params, mesh: Mesh | None):
    """On their devices, in the compute dtype."""
    params = cast_params(params, model.execution.dtype)
    if mesh is None:
        return jax.tree.map(jnp.asarray, params)
    return jax.device_put(params, on_mesh(mesh, param_specs(model.config)))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _bucket(length: int) -> int:
    """32, 64, 96, 128, 192, 256, ...: few programs, and at most half of the longest row padding."""
    power = max(32, 1 << (length - 1).bit_length())
    return power * 3 // 4 if 64 < length <= power * 3 // 4 else power
