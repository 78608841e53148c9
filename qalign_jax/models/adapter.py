"""Low-rank adapters beside the layers' matrices (LoRA, Hu et al., arXiv 2106.09685)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct

from qalign_jax import schema
from qalign_jax.models.quantization import INPUTS, Matrix

PARTS = {"attention": ("query", "key", "value", "out"), "mlp": ("gate", "up", "down")}
MATRICES = tuple(INPUTS)

_ADAPTER = {
    "rank": schema.whole(1, 10**5),
    "alpha": schema.number(1e-6, 1e6),
    "dropout": schema.number(0, 0.99),
    "scaling": schema.one_of("rank", "sqrt_rank"),
}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The shape of an adapter: W + alpha / rank * A B in the place of these matrices W.

    Raises:
      ValueError: a rank below 1, matrices that layers do not have, or another value out of range.
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0  # of A's inputs, while training
    matrices: tuple[str, ...] = MATRICES  # of every layer
    scaling: str = "rank"  # what alpha is divided by; "sqrt_rank" is rsLoRA (arXiv 2312.03732)

    def __post_init__(self):
        values = vars(self) | {"matrices": list(self.matrices)}
        schema.check(values, {**_ADAPTER, "matrices": [schema.TEXT]}, "the adapter")
        if unknown := [name for name in self.matrices if name not in INPUTS]:
            raise ValueError(
                f"the adapter: layers have no matrix {unknown[0]!r}; they have {', '.join(INPUTS)}"
            )
        if not self.matrices or len(set(self.matrices)) < len(self.matrices):
            raise ValueError(
                f"the adapter: matrices={self.matrices}; expected one or more of "
                f"{', '.join(INPUTS)}, each once"
            )

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))


class Adapted(struct.PyTreeNode):
    """A frozen matrix with its adapter: x W + scale (x A) B."""

    weight: Matrix
    a: jax.Array  # [.., inputs, rank]
    b: jax.Array  # [.., rank, outputs]
    scale: jax.Array  # [..] f32: 0 leaves the matrix alone


def init_pairs(adapter: Adapter, key: jax.Array, shapes):
    """New pairs of A and B, f32: A B is 0.

    A is uniform within 1 / sqrt(inputs), as PEFT begins.

    Args:
      shapes: a tree of pairs, as `pair_shapes` makes it.
    """
    made = {}
    for part, name in _places(adapter):
        pair = shapes["layers"][part][name]
        own = jax.random.fold_in(key, MATRICES.index(name))
        bound = 1 / math.sqrt(pair["a"].shape[1])
        a = jax.random.uniform(own, pair["a"].shape, jnp.float32, -bound, bound)
        made.setdefault(part, {})[name] = {"a": a, "b": jnp.zeros(pair["b"].shape, jnp.float32)}
    return {"layers": made}


def pair_shapes(adapter: Adapter, held):
    """The shapes of A and B, f32, a tree of pairs in the place of the adapted matrices alone.

    Args:
      held: the base's parameters as `hold` of params.py makes them of stacked layers, or their
        shapes.
    """

    def pair(matrix: Matrix):
        layers, inputs, outputs = matrix.values.shape
        a, b = (layers, inputs, adapter.rank), (layers, adapter.rank, outputs)
        return {
            "a": jax.ShapeDtypeStruct(a, jnp.float32),
            "b": jax.ShapeDtypeStruct(b, jnp.float32),
        }

    return _each(adapter, held, pair)


def pair_axes(adapter: Adapter, held_axes):
    """The logical axes of `pair_shapes`, from those of the base (`held_axes` of params.py)."""

    def pair(matrix: Matrix):
        layers, inputs, outputs = matrix.values
        return {"a": (layers, axis_of(inputs), "rank"), "b": (layers, "rank", axis_of(outputs))}

    return _each(adapter, held_axes, pair)


def axis_of(axis: str) -> str:
    """The logical axis of A or B beside one of their matrix: both are split over fsdp."""
    return axis if axis == "embed" else "adapter"


def attach(adapter: Adapter, held, pairs):
    """The base's parameters with adapters beside its matrices.

    Args:
      held: as `hold` makes them of stacked layers, or parts of them with these layers.
      pairs: as `init_pairs` makes them.
    """

    def adapted(matrix: Matrix, pair):
        scale = jnp.full(pair["a"].shape[:1], adapter.scale, jnp.float32)
        return Adapted(matrix, pair["a"], pair["b"], scale)

    return _with_adapted(adapter, held, pairs, adapted)


def attach_axes(adapter: Adapter, held_axes):
    """The logical axes of what `attach` returns."""

    def adapted(matrix, pair):
        return Adapted(matrix, pair["a"], pair["b"], pair["a"][:1])

    return _with_adapted(adapter, held_axes, pair_axes(adapter, held_axes), adapted)


def detach(params):
    """The parameters without their adapters, the base's own arrays; the inverse of `attach`."""
    return jax.tree.map(
        lambda node: node.weight if is_adapted(node) else node, params, is_leaf=is_adapted
    )


def is_adapted(node) -> bool:
    return isinstance(node, Adapted)


def _places(adapter: Adapter):
    """(part of the layers, matrix) of each adapted matrix."""
    return [(part, name) for part in PARTS for name in PARTS[part] if name in adapter.matrices]


def _each(adapter: Adapter, held, function):
    made = {}
    for part, name in _places(adapter):
        made.setdefault(part, {})[name] = function(held["layers"][part][name])
    return {"layers": made}


def _with_adapted(adapter: Adapter, held, pairs, function):
    layers = {part: dict(tree) for part, tree in held["layers"].items()}
    for part, name in _places(adapter):
        layers[part][name] = function(layers[part][name], pairs["layers"][part][name])
    return {**held, "layers": layers}
