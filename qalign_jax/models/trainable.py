"""What of a model is trained: all of it, an adapter, or matrices of some layers."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qalign_jax.models import adapter as adapters
from qalign_jax.models.adapter import MATRICES, PARTS, Adapter
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.params import abstract_held, abstract_params, held_axes, is_axes
from qalign_jax.models.quantization import INT8
from qalign_jax.parallel.mesh import on_mesh, spec_of

_LAYERS = re.compile(r"layers:(\d+)(?:-(\d+))?(?:/([\w,]+))?")


@dataclasses.dataclass(frozen=True)
class Trainable:
    """What is trained, in f32; the rest is frozen, as `hold` of params.py makes it.

    Without adapter and layers everything is trained.

    Raises:
      ValueError: an adapter and layers at once, or int8 where nothing is frozen.
    """

    adapter: Adapter | None = None
    layers: tuple[int, int] | None = None  # the first and the last whose `matrices` are trained
    matrices: tuple[str, ...] = MATRICES
    dtype: str = "float32"  # the compute dtype, which frozen weights are held in
    int8: bool = False  # holds the frozen matrices in int8

    def __post_init__(self):
        if unknown := set(self.matrices) - set(MATRICES):
            raise ValueError(f"trainable matrices: layers have no {sorted(unknown)[0]!r}")
        if self.adapter and self.layers:
            raise ValueError("an adapter or layers can be trained, not both; leave one out")
        if self.layers and not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(f"trainable layers {self.layers}; expected the first, then the last")
        if self.int8 and self.is_whole:
            raise ValueError(
                "weights_dtype='int8' is for weights that are frozen, and all are trained here; "
                "give the rank of an adapter or `trainable` layers, or leave it out"
            )

    @classmethod
    def of(cls, text: str = "", **options) -> "Trainable":
        """From a text such as `layers:20-25/mlp`, `layers:3` or `layers:0-7/query,value`.

        `options` are fields of the class.

        Raises:
          ValueError: another text, matrices that layers do not have; as the class.
        """
        if not text:
            return cls(**options)
        found = _LAYERS.fullmatch(text)
        if not found or int(found[1]) > int(found[2] or found[1]):
            raise ValueError(
                f"trainable={text!r}; expected something like layers:20-25/mlp, with the first and "
                "the last layer, or nothing"
            )
        names = []
        for name in (found[3] or ",".join(PARTS)).split(","):
            if name not in (*PARTS, *MATRICES):
                known = ", ".join((*PARTS, *MATRICES))
                raise ValueError(f"trainable={text!r}: layers have no {name!r}; they have {known}")
            names += PARTS.get(name, (name,))
        layers = int(found[1]), int(found[2] or found[1])
        matrices = tuple(name for name in MATRICES if name in names)
        return cls(layers=layers, matrices=matrices, **options)

    @property
    def is_whole(self) -> bool:
        return not self.adapter and not self.layers

    def fits_beside(self, weights_dtype: str) -> bool:
        """Whether it is an adapter that decoding may leave beside weights in this dtype.

        One that was trained beside int8 weights belongs to these alone.
        """
        return self.adapter is not None and (weights_dtype == INT8 or not self.int8)

    def first_layer(self) -> int:
        """The first layer that gradients reach."""
        return self.layers[0] if self.layers else 0

    def check(self, config: LlamaConfig) -> None:
        """Raises a ValueError for layers that the model lacks, or a rank above its width."""
        if self.adapter and self.adapter.rank > config.d_model:
            raise ValueError(
                f"adapter.rank={self.adapter.rank}; expected at most {config.d_model}, the model's "
                "width: above it all weights are fewer"
            )
        if self.layers and self.layers[1] >= config.n_layers:
            raise ValueError(
                f"trainable: layer {self.layers[1]} is none of the model's {config.n_layers}, "
                "which count from 0"
            )

    def __str__(self) -> str:
        if self.adapter:
            names = "" if self.adapter.matrices == MATRICES else ",".join(self.adapter.matrices)
            return f"an adapter of rank {self.adapter.rank}" + (f" on {names}" if names else "")
        if self.layers:
            first, last = self.layers
            return f"{', '.join(self.matrices)} of the layers {first} to {last}"
        return "all weights"


WHOLE = Trainable()


@functools.lru_cache
def trained_shapes(config: LlamaConfig, trainable: Trainable):
    """The shapes of what is trained, f32, and their logical axes, as two trees."""
    trainable.check(config)
    shapes, axes = abstract_params(config)
    if trainable.adapter:
        held, named = abstract_held(config, "float32"), held_axes(config, apart=False)
        pairs = adapters.pair_shapes(trainable.adapter, held)
        return pairs, adapters.pair_axes(trainable.adapter, named)
    if not trainable.layers:
        return shapes, axes
    first, last = trainable.layers

    def cut(leaf):
        return jax.ShapeDtypeStruct((last + 1 - first, *leaf.shape[1:]), jnp.float32)

    return {"layers": jax.tree.map(cut, _chosen(trainable, shapes["layers"]))}, {
        "layers": _chosen(trainable, axes["layers"])
    }


@functools.lru_cache
def frozen_shapes(config: LlamaConfig, trainable: Trainable):
    """The shapes of what is frozen beside it, and their logical axes; {} where nothing is."""
    if trainable.is_whole:
        return {}, {}
    held = abstract_held(config, trainable.dtype, int8=trainable.int8)
    axes = held_axes(config, apart=False, int8=trainable.int8)
    if trainable.adapter:
        return held, axes

    def cut(leaf, own: slice):
        return leaf.update(shape=(own.stop - own.start, *leaf.shape[1:]))

    shapes = _stacked(trainable, config.n_layers, held["layers"], cut)
    named = _stacked(trainable, config.n_layers, axes["layers"], lambda leaf, _: leaf)
    return {**held, "layers": shapes}, {**axes, "layers": named}


def trained_specs(config: LlamaConfig, trainable: Trainable):
    """The PartitionSpec of everything that is trained."""
    return jax.tree.map(spec_of, trained_shapes(config, trainable)[1], is_leaf=is_axes)


def frozen_specs(config: LlamaConfig, trainable: Trainable):
    """The PartitionSpec of everything that is frozen."""
    return jax.tree.map(spec_of, frozen_shapes(config, trainable)[1], is_leaf=is_axes)


def new_adapter(config: LlamaConfig, adapter: Adapter, mesh: Mesh, seed: int):
    """The pairs of a new adapter, on the devices that hold them; the same on every mesh."""
    trainable = Trainable(adapter)
    shapes = trained_shapes(config, trainable)[0]
    make = functools.partial(adapters.init_pairs, adapter, shapes=shapes)
    shardings = on_mesh(mesh, trained_specs(config, trainable))
    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def freeze_and_free(trainable: Trainable, held):
    """What is frozen of a model whose layers' matrices are trained in part.

    Args:
      held: all parameters, as `hold` of params.py makes them of stacked layers; the layers cannot
        be used afterwards.

    Returns:
      the same, with the layers as a tuple of stacks: those before the trained ones, these without
      the matrices that are trained, and those behind.
    """
    leaves, structure = jax.tree.flatten(held["layers"])
    cuts, parts = [], _parts(trainable, len(held["layers"]["mlp_norm"]["scale"]))
    for leaf in leaves:
        cuts.append([_slice(part.start, part.stop, leaf.sharding)(leaf) for part in parts])
        jax.block_until_ready(cuts[-1])
        leaf.delete()
    stacks = [structure.unflatten(each) for each in zip(*cuts, strict=True)]
    return {**held, "layers": tuple(_rests(trainable, parts, stacks))}


@functools.cache
def _slice(start: int, stop: int, sharding):
    return jax.jit(lambda leaf: leaf[start:stop], out_shardings=sharding)


def take(trainable: Trainable, params):
    """What is trained, f32, of all parameters as `init` makes them, in any dtype."""
    assert trainable.layers, "an adapter is not in the model's own parameters"
    first, last = trainable.layers
    chosen = _chosen(trainable, params["layers"])
    return {"layers": jax.tree.map(lambda leaf: leaf[first : last + 1].astype(jnp.float32), chosen)}


def put(trainable: Trainable, params, trained):
    """The inverse of `take`: all parameters, with what is trained in its place, in their dtype."""
    assert trainable.layers, "an adapter is not in the model's own parameters"
    first, last = trainable.layers
    layers = {part: dict(tree) for part, tree in params["layers"].items()}
    for part, tree in trained["layers"].items():
        for name, leaf in tree.items():
            whole = layers[part][name]
            layers[part][name] = whole.at[first : last + 1].set(leaf.astype(whole.dtype))
    return {**params, "layers": layers}


def join(trainable: Trainable, trained, frozen):
    """The parameters that a model reads, of what is trained and what is frozen."""
    if trainable.adapter:
        return adapters.attach(trainable.adapter, frozen, trained)
    if not trainable.layers:
        return trained
    stacks = list(frozen["layers"])
    place = 1 if trainable.layers[0] else 0
    own = {part: dict(tree) for part, tree in stacks[place].items()}
    for part, tree in trained["layers"].items():
        own[part] = own.get(part, {}) | tree
    stacks[place] = own
    return {**frozen, "layers": tuple(stacks)}


def _parts(trainable: Trainable, count: int) -> list[slice]:
    """The stacks of layers: before the trained ones, these, and behind; none is empty."""
    first, last = trainable.layers or (0, count - 1)
    parts = [slice(0, first), slice(first, last + 1), slice(last + 1, count)]
    return [part for part in parts if part.stop > part.start]


def _stacked(trainable: Trainable, count: int, layers, cut):
    """What is frozen of all layers as a tuple of stacks; `cut` takes an array's part."""
    parts = _parts(trainable, count)
    stacks = [jax.tree.map(lambda leaf, p=part: cut(leaf, p), layers, is_leaf=is_axes)
              for part in parts]  # fmt: skip
    return tuple(_rests(trainable, parts, stacks))


def _rests(trainable: Trainable, parts: list[slice], stacks: list) -> list:
    """The stacks without what is trained."""
    return [
        _without(trainable, layers) if part.start == trainable.first_layer() else layers
        for part, layers in zip(parts, stacks, strict=True)
    ]


def _chosen(trainable: Trainable, layers):
    chosen = {
        part: {name: layers[part][name] for name in names if name in trainable.matrices}
        for part, names in PARTS.items()
    }
    return {part: tree for part, tree in chosen.items() if tree}


def _without(trainable: Trainable, layers):
    return {
        part: {name: leaf for name, leaf in tree.items() if name not in trainable.matrices}
        for part, tree in layers.items()
    }
