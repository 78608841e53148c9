"""What a training stage trains, as its keys say, and where the rest of the weights is."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from qalign_jax import files, mistakes
from qalign_jax.checkpoints import part as parts
from qalign_jax.checkpoints.card import fingerprint
from qalign_jax.checkpoints.model import STORED
from qalign_jax.checkpoints.part import Part
from qalign_jax.models.adapter import MATRICES, Adapter
from qalign_jax.models.params import hold_and_free
from qalign_jax.models.quantization import INT8, check_dtypes
from qalign_jax.models.trainable import Trainable, freeze_and_free, new_adapter, take
from qalign_jax.recipe.weights import Resolver, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The adapter that a stage trains (LoRA, arXiv 2106.09685); without a rank there is none.

    A stage that starts from another's adapter trains that further, or with `merge` a new one
    beside the base with the first merged into it.
    """

    rank: int | None = None
    alpha: float = 16.0  # what is added is alpha / rank A B
    dropout: float = 0.0  # of the inputs of A
    matrices: Sequence[str] = MATRICES
    scaling: str = "rank"  # what alpha is divided by; sqrt_rank is rsLoRA
    merge: bool = False

    @property
    def shape(self) -> Adapter | None:
        """The adapter.

        Raises:
          ValueError: as the class Adapter.
        """
        if self.rank is None:
            return None
        return Adapter(self.rank, self.alpha, self.dropout, tuple(self.matrices), self.scaling)


# The keys of a stage, as they are where all weights are trained. Then they are no settings, so
# that folders of before there were any stay valid.
UNSET = {"adapter": dataclasses.asdict(AdapterConfig()), "trainable": "", "weights_dtype": ""}


def mistakes_in(
    name: str, adapter: Mapping[str, Any], trainable: str, weights_dtype: str
) -> list[str]:
    """What is wrong with these keys of the stage `name`."""
    hints = typing.get_type_hints(AdapterConfig)
    found = [
        f"{name}.adapter.{key}: no adapter has such a key; it has {', '.join(hints)}"
        for key in adapter if key not in hints
    ]  # fmt: skip
    found += mistakes.wrong_types(f"{name}.adapter.", adapter, hints)
    found += mistakes.of(f"{name}.", check_dtypes, weights_dtype)
    if found:
        return found
    config = AdapterConfig(**adapter)
    if config.rank is None and config != AdapterConfig():
        given = [key for key in adapter if adapter[key] != UNSET["adapter"][key]]
        return [
            f"{name}.adapter.{given[0]} is given and {name}.adapter.rank is not; give a rank, like "
            "64: without one there is no adapter"
        ]
    if config.rank is not None and config.rank < 1:
        wanted = "at least 1; leave it out to train all weights"
        return [mistakes.expected(f"{name}.adapter.rank", config.rank, wanted)]
    return mistakes.of(f"{name}: ", trainable_of, adapter, trainable, weights_dtype)


def trainable_of(
    adapter: Mapping[str, Any], trainable: str, weights_dtype: str, dtype: str = "float32"
) -> Trainable:
    """What is trained; `dtype` is that in which the rest is held.

    Raises:
      ValueError: as Trainable and Adapter.
    """
    shape, int8 = AdapterConfig(**adapter).shape, weights_dtype == INT8
    return Trainable.of(trainable, adapter=shape, dtype=dtype, int8=int8)


def continues(adapter: Mapping[str, Any], weights: Weights) -> bool:
    """Whether the adapter that the stage starts from is trained further.

    Raises:
      ValueError: it has another shape than that of the stage, or there is none to merge.
    """
    config = AdapterConfig(**adapter)
    own, part = config.shape, weights.part() if config.shape else None
    found = part and part.adapter
    if own is None or config.merge or found is None:
        if own and config.merge and not found:
            raise ValueError(f"adapter.merge: {weights.name} has no adapter to merge")
        return False
    if own != dataclasses.replace(found, dropout=own.dropout):
        raise ValueError(
            f"adapter: that of {weights.name} is {_words(found)}, here it is {_words(own)}; give "
            "these values, or adapter.merge=True for a new adapter"
        )
    return True


def initial(
    adapter: Mapping[str, Any],
    trainable: Trainable,
    weights: Weights,
    resolver: Resolver,
    mesh: Mesh,
    seed: int,
) -> tuple[Any, Any]:
    """What is trained, f32, as training begins, and what is frozen.

    Args:
      weights: those that the stage starts from.
    """
    if trainable.is_whole:
        return weights.load(mesh).params, {}
    config = weights.loaded_card().config
    if trainable.adapter:
        int8 = INT8 if trainable.int8 else ""
        base = _base(adapter, weights, resolver)
        frozen = base.load(mesh, trainable.dtype, int8, adapted=False).params
        if base is not weights:
            return weights.load_adapter(mesh), frozen
        return new_adapter(config, trainable.adapter, mesh, seed), frozen
    params = weights.load(mesh, param_dtype=STORED).params
    trained = take(trainable, params)
    held = hold_and_free(config, params, trainable.dtype, mesh, int8=trainable.int8)
    return trained, freeze_and_free(trainable, held)


def part_of(
    adapter: Mapping[str, Any], trainable: Trainable, weights: Weights, resolver: Resolver
) -> Part | None:
    """What the stage leaves, where that is not all weights.

    A base in the workdir is named from the stage's folder, so that a workdir may move.
    """
    if trainable.is_whole:
        return None
    base = _base(adapter, weights, resolver).path
    workdir, names = files.absolute(resolver.workdir), []
    for place in (files.absolute(each) for each in parts.split(base) if each):
        names.append(f"../{place.name}" if place.parent == workdir else place)
    return Part(trainable, parts.join(*names), fingerprint(base))


def _base(adapter: Mapping[str, Any], weights: Weights, resolver: Resolver) -> Weights:
    """The weights that are frozen."""
    base = weights.base() if continues(adapter, weights) else None
    return resolver.resolve(base) if base else weights


def _words(adapter: Adapter) -> str:
    scaling = "" if adapter.scaling == "rank" else f", scaling {adapter.scaling}"
    matrices = ", ".join(adapter.matrices)
    return f"rank {adapter.rank}, alpha {adapter.alpha:g}{scaling}, on {matrices}"
