"""What decoding programs depend on, and the models' parameters and caches as they hold them."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qalign_jax.decoding.sampling import Sampling
from qalign_jax.models.adapter import detach, is_adapted
from qalign_jax.models.cache import empty_cache, is_by_row, whole_axes
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import abstract_held, held_axes, hold, is_axes
from qalign_jax.models.quantization import INT8, check_dtypes
from qalign_jax.parallel.mesh import abstract_on, batch_shards, sharding_of

# Caches grow in these steps, so that similar runs share a program; those whose positions lie in a
# TPU's lanes are whole multiples of them.
LENGTH_MULTIPLE = 128
# The most positions of a prefill, of all its rows.
PREFILL_POSITIONS = 8192
# The most positions of one prompt in a prefill: rows that decode wait for one part at a time.
PREFILL_PART = 512
# The fewest positions of a cache that a step reads, where the cache has more.
LEAST_ROOM = 256

# What drafts tokens (speculative.py): proxy-tuning's own expert, another model, or the row's text.
EXPERT, MODEL, LOOKUP = "expert", "model", "lookup"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a compiled program depends on; the sampling's seed is left at 0 here.

    Layers are `apart` on CPUs, where a loop over stacked layers copies the weights and the cache of
    each out of the stack. Elsewhere a loop is compiled once for all layers, and neighbouring models
    of one size are decoded as one, with fewer collectives.
    """

    models: tuple[Llama, ...]  # those whose logits are combined, behind them the draft MODEL
    sampling: Sampling
    mesh: Mesh | None
    slots: int  # 0: as many as memory holds (memory.py)
    apart: bool
    weights_dtype: str = ""  # "" is each model's compute dtype
    cache_dtype: str = ""
    length: int = 0  # S, of every cache, and the room for outputs
    trace: bool = False
    draft: str = ""  # EXPERT, MODEL or LOOKUP; "" decodes a token at a time
    # the expert is the anti-expert with an adapter, and their weights are held once
    shared: bool = False

    @property
    def targets(self) -> tuple[Llama, ...]:
        """The models whose logits choose the tokens."""
        return self.models[:-1] if self.draft == MODEL else self.models

    @property
    def drafting(self) -> int | None:
        """The place among `models` of the one that drafts."""
        return {EXPERT: 1, MODEL: len(self.models) - 1}.get(self.draft)

    @property
    def vocab_size(self) -> int:
        """The ids that all targets have."""
        return min(model.config.vocab_size for model in self.targets)

    @property
    def groups(self) -> list[tuple[Llama, int]]:
        """Each model that is decoded, and how many are decoded as one; what drafts is alone.

        So are an expert and an anti-expert that share their weights, which are then read once, as
        the expert. Where the expert drafts, it is a group of its own.
        """
        groups: list[tuple[Llama, int]] = []
        alone: set[int | None] = set()
        if self.drafting is not None:  # it joins no group, and the next does not join its own
            alone = {self.drafting, self.drafting + 1}
        for place, model in enumerate(self.models):
            if self.shared and place in (1, 2):
                joins = place == 2 and self.draft != EXPERT
            else:
                joins = groups and groups[-1][0] == model and not self.apart and place not in alone
            if joins:
                groups[-1] = groups[-1][0], groups[-1][1] + 1
            else:
                groups.append((model, 1))
        return groups

    @property
    def firsts(self) -> list[int]:
        """The place among `models` of the first of each group."""
        counts = [count for _, count in self.groups]
        return [sum(counts[:place]) for place in range(len(counts))]

    @property
    def held(self) -> list[int]:
        """How many models' parameters each group has: those of a shared pair are the expert's."""
        counts = [count for _, count in self.groups]
        if self.shared and self.draft == EXPERT:
            counts[2] = 0
        elif self.shared:
            counts[1] = 1
        return counts

    @property
    def target_groups(self) -> list[int]:
        """The places among `groups` of the targets."""
        return list(range(len(self.groups) - (self.draft == MODEL)))

    @property
    def drafting_group(self) -> int | None:
        """The place among `groups` of the model that drafts."""
        if self.drafting is None:
            return None
        return self.firsts.index(self.drafting)

    def place(self, array: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """The array, constrained to the sharding of these logical axes."""
        if self.mesh is None:
            return array
        return jax.lax.with_sharding_constraint(array, sharding_of(self.mesh, axes))


def make_plan(
    models: tuple[Llama, ...],
    sampling: Sampling,
    mesh: Mesh | None,
    slots: int,
    *,
    weights_dtype: str = "",
    cache_dtype: str = "",
    apart: bool | None = None,
    trace: bool = False,
    draft: str = "",
    shared: bool = False,
) -> Plan:
    """What an `Engine` of these models compiles, for caches of no length yet (`with_room`).

    Raises:
      ValueError: as `Engine`.
    """
    if slots < 0:
        raise ValueError(f"slots {slots}: expected at least 1, or 0 for what memory holds")
    check_dtypes(weights_dtype, cache_dtype)
    tensor = mesh.shape["tensor"] if mesh else 1
    for model in models:
        if model.config.n_kv_heads % tensor:
            raise ValueError(
                f"{model.config.n_kv_heads} key-value heads cannot be split over tensor:{tensor}; "
                "choose a tensor size that divides them"
            )
    platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
    return Plan(
        models, dataclasses.replace(sampling, seed=0), mesh,
        round_up(slots, batch_shards(mesh) if mesh else 1),
        platform == "cpu" if apart is None else apart, weights_dtype, cache_dtype,
        trace=trace, draft=draft, shared=shared,
    )  # fmt: skip


def shares_weights(models: Sequence[tuple[Llama, Any]]) -> bool:
    """Whether an expert is its anti-expert with an adapter, on the same arrays.

    Args:
      models: (module, params) pairs of large model, expert and anti-expert, or of one model.
    """
    if len(models) != 3:
        return False
    (expert, adapted), (antiexpert, base) = models[1:]
    if not expert.adapter or antiexpert != Llama(expert.config, expert.execution, expert.parallel):
        return False
    own = detach(adapted)
    return jax.tree.structure(own) == jax.tree.structure(base) and all(
        one is other for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(base), strict=True)
    )


def with_room(plan: Plan, longest: int) -> Plan:
    """The plan with caches for prompts and answers that together have up to `longest` tokens."""
    most = min(model.config.max_length for model in plan.targets)
    return dataclasses.replace(plan, length=min(round_up(longest, LENGTH_MULTIPLE), most))


def prefill_shape(plan: Plan, prompt_length: int, start: int = 0) -> tuple[int, int]:
    """Rows and positions of the prefill that reads prompts of up to this length from `start` on.

    Longer prompts than `PREFILL_PART` behind it are read in several.
    """
    bucket = min(_bucket(min(prompt_length - start, PREFILL_PART)), plan.length - start)
    width = min(-(-plan.slots // 8), max(1, PREFILL_POSITIONS // bucket))
    return round_up(width, batch_shards(plan.mesh) if plan.mesh else 1), bucket


def room_for(plan: Plan, longest: int) -> int:
    """How much of every cache a step reads where the longest row has this many tokens."""
    return min(max(_bucket(longest), LEAST_ROOM), plan.length)


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _bucket(length: int) -> int:
    """32, 64, 96, 128, 192, 256, ...: few programs, and at most half of the longest row padding."""
    power = max(32, 1 << (length - 1).bit_length())
    return power * 3 // 4 if 64 < length <= power * 3 // 4 else power


def hold_params(plan: Plan, params: Sequence[Any]) -> tuple[Any, ...]:
    """The parameters of the plan's models, a tree a group, on their devices.

    An anti-expert that shares its weights and is a group of its own has () in place of them.

    Args:
      params: a tree a model, as `init` makes them or as `hold` leaves them; what is as it must be
        is not copied.
    """
    held: list[Any] = []
    groups = zip(plan.groups, plan.firsts, plan.held, _params_axes(plan), strict=True)
    for (model, _), first, count, axes in groups:
        if count:
            shardings = None if plan.mesh is None else _shardings(plan.mesh, axes)
            held.append(_hold(plan, model, tuple(params[first : first + count]), shardings))
        else:
            held.append(())
    return tuple(held)


def _hold(plan: Plan, model: Llama, params: tuple, shardings):
    make = functools.partial(_held_group, plan, model)
    if _is_held(params[0], jax.eval_shape(make, params), shardings):
        return params[0]
    return jax.jit(make, out_shardings=shardings)(params)


def _is_held(params, wanted, shardings) -> bool:
    """Whether parameters are as a group of one holds them."""
    if jax.tree.structure(params) != jax.tree.structure(wanted):
        return False
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True)
    if any((own.shape, own.dtype) != (other.shape, other.dtype) for own, other in pairs):
        return False
    if shardings is None:
        return True
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True)
    return all(own.sharding.is_equivalent_to(other, own.ndim) for own, other in pairs)


def _held_group(plan: Plan, model: Llama, params: tuple):
    held = [
        hold(
            model.config, each, model.execution.dtype,
            apart=plan.apart, int8=plan.weights_dtype == INT8,
        )
        for each in params
    ]  # fmt: skip
    if len(held) == 1:
        return held[0]
    return {
        name: jax.tree.map(lambda *leaves, at=at: jnp.stack(leaves, at), *(h[name] for h in held))
        for name, at in _group_axis(held[0]).items()
    }


def _group_axis(params) -> dict[str, int]:
    """The axis of the models of a group, by part of the parameters.

    Behind the layers', over which a loop runs; in front of it XLA would copy all layers.
    """
    return {name: int(name == "layers") for name in params}


def _params_axes(plan: Plan) -> list[Any]:
    """The logical axes of what `hold_params` returns, a tuple in place of each array."""
    found = []
    for (model, _), count in zip(plan.groups, plan.held, strict=True):
        axes: Any = ()
        if count:
            axes = held_axes(
                model.config, apart=plan.apart, int8=plan.weights_dtype == INT8,
                adapter=model.adapter,
            )  # fmt: skip
        if count > 1:
            axes = {
                name: jax.tree.map(
                    lambda names, at=at: (*names[:at], None, *names[at:]), axes[name],
                    is_leaf=is_axes,
                )
                for name, at in _group_axis(axes).items()
            }  # fmt: skip
        found.append(axes)
    return found


def _cache_axes(plan: Plan) -> list[Any]:
    found = []
    for model, count in plan.groups:
        int8 = plan.cache_dtype == INT8
        axes = whole_axes(model.config, plan.apart, int8, _by_row(plan, model))
        if count > 1:
            axes = jax.tree.map(lambda names: (None, *names), axes, is_leaf=is_axes)
        found.append(axes)
    return found


def _by_row(plan: Plan, model: Llama) -> bool:
    if plan.apart:
        return False
    parts = plan.mesh.shape["tensor"] * batch_shards(plan.mesh) if plan.mesh else 1
    width = 1 if plan.cache_dtype == INT8 else jnp.dtype(model.execution.dtype).itemsize
    return is_by_row(model.config, plan.slots * plan.length // parts, width)


def _shardings(mesh: Mesh, axes):
    return jax.tree.map(lambda names: sharding_of(mesh, names), axes, is_leaf=is_axes)


def empty_caches(plan: Plan) -> tuple[Any, ...]:
    """A cache a group, of zeros."""
    caches = []
    for model, count in plan.groups:
        cache = empty_cache(
            model.config, model.execution.dtype, plan.slots, plan.length,
            apart=plan.apart, int8=plan.cache_dtype == INT8, by_row=_by_row(plan, model),
        )  # fmt: skip
        if count > 1:
            cache = jax.tree.map(lambda whole, n=count: jnp.stack([whole] * n), cache)
        caches.append(cache)
    return tuple(caches)


def place_caches(plan: Plan, caches: tuple[Any, ...]) -> tuple[Any, ...]:
    """Caches split over batch and heads."""
    return tuple(
        jax.tree.map(lambda names, whole: plan.place(whole, names), axes, cache, is_leaf=is_axes)
        for axes, cache in zip(_cache_axes(plan), caches, strict=True)
    )


def abstract_params(plan: Plan) -> tuple[Any, ...]:
    """What `hold_params` returns as ShapeDtypeStructs with shardings: for compiling ahead."""
    assert plan.mesh, "programs are compiled ahead of time for a mesh"
    found = []
    for (model, _), count, axes in zip(plan.groups, plan.held, _params_axes(plan), strict=True):
        shapes: Any = ()
        if count:
            dtype, int8 = model.execution.dtype, plan.weights_dtype == INT8
            stacked = abstract_held(model.config, dtype, int8=int8, adapter=model.adapter)
            shapes = jax.eval_shape(functools.partial(_held_group, plan, model), (stacked,) * count)
        found.append(abstract_on(plan.mesh, shapes, axes))
    return tuple(found)


def weights_of(plan: Plan, params, place: int):
    """The parameters that a group reads; an anti-expert without its own reads the expert's.

    Args:
      params: as `hold_params` or `abstract_params` returns them; place: the group's.
    """
    return params[place] if plan.held[place] else detach(params[place - 1])


def abstract_caches(plan: Plan) -> tuple[Any, ...]:
    """As `abstract_params`, of `empty_caches`."""
    assert plan.mesh, "programs are compiled ahead of time for a mesh"
    shapes = jax.eval_shape(lambda: empty_caches(plan))
    return abstract_on(plan.mesh, shapes, tuple(_cache_axes(plan)))


def each_model(
    plan: Plan,
    params,
    caches,
    function: Callable[[Llama, Any, Any], tuple[jax.Array, Any]],
    groups: Collection[int] | None = None,
) -> tuple[list[jax.Array], tuple[Any, ...]]:
    """Calls a function for every model, those of a group at once.

    Args:
      params, caches: a tree a group; caches may be None.
      function: of a model, its parameters and its cache, returns logits and a new cache.
      groups: only these, by their places; the caches of others stay as they are.

    Returns:
      the logits, one a model of the groups, and all caches.
    """
    logits, new = [], []
    for place, (model, count) in enumerate(plan.groups):
        weights, cache = weights_of(plan, params, place), caches and caches[place]
        if groups is not None and place not in groups:
            pass
        elif count == 1:
            one, cache = function(model, weights, cache)
            logits.append(one)
        elif plan.held[place] == 1:
            together, cache = _each_of_pair(functools.partial(function, model), weights, cache)
            logits.extend(together)
        else:
            over = _group_axis(weights), 0
            together, cache = jax.vmap(functools.partial(function, model), over)(weights, cache)
            logits.extend(together)
        new.append(cache)
    return logits, tuple(new)


def _each_of_pair(function: Callable, weights, cache):
    """Calls a function for an expert and for its anti-expert, which has no adapter.

    What reads a weight reads it once, for the rows of both.
    """

    def one(share, cache):
        def scaled(node):
            return node.replace(scale=node.scale * share) if is_adapted(node) else node

        return function(jax.tree.map(scaled, weights, is_leaf=is_adapted), cache)

    return jax.vmap(one)(jnp.array([1.0, 0.0]), cache)
