"""Device meshes and the one table from logical axes to mesh axes.

Every parameter and activation names its axes logically (`embed`, `heads`, ...); `RULES` maps
each to the mesh axes that it is split over. The mesh always has the four axes of `AXES`, most of
size one on a small machine, so that one program serves all meshes.
"""

import dataclasses
import functools
import math

import jax
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Outermost first: `data` may run between slices over DCN, `tensor` needs the fastest links.
# fsdp has a second axis because the TPU compiler scatters gradients over two axes that span a
# slice, where it all-reduces them in full over one.
AXES = ("data", "fsdp", "fsdp_inner", "tensor")
FSDP = ("fsdp", "fsdp_inner")
BATCH = ("data", "fsdp", "fsdp_inner")

RULES: dict[str, tuple[str, ...]] = {
    "batch": BATCH,
    "length": (),
    "seq_shard": ("tensor",),  # length of activations between the products that tensor splits
    "layers": (),
    "embed": FSDP,
    "norm": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_size": (),
    "mlp": ("tensor",),
    "rank": (),
    "adapter": ("tensor", *FSDP),  # of an adapter, beside a matrix' axis that tensor alone splits
    "vocab": ("tensor",),
    "vocab_rows": (),  # a table split by vocabulary makes its lookup overflow VMEM on v5e and v6e
}


def make_mesh(spec: str, devices=None) -> Mesh:
    """A mesh from text such as `data:1,fsdp:-1,tensor:2`.

    Args:
      spec: `axis:size` pairs of `data`, `fsdp` and `tensor`; axes left out have size 1, one size
        may be -1 (what is left). `fsdp:16x16` splits over two mesh axes, for fsdp over a whole
        slice. `single` is one device, for models too small to split.
      devices: the devices to use, all of them by default.

    Raises:
      ValueError: an unknown axis, a bad size, or sizes that do not fit the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if spec == "single":
        devices = devices[:1]
    sizes = mesh_sizes(spec)
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = max(1, len(devices) // known)
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh {spec!r} makes {math.prod(sizes.values())} devices, but {len(devices)} are "
            "here; change the sizes, or give one of them as -1"
        )
    arranged = _arrange(tuple(sizes[name] for name in AXES), devices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(spec: str) -> dict[str, int]:
    """The sizes of the mesh axes (AXES) in a text that `make_mesh` takes, -1 for what is left.

    Raises:
      ValueError: an unknown axis or one named twice, a bad size, or more than one size of -1.
    """
    sizes: dict[str, int] = dict.fromkeys(AXES, 1)
    named = []
    expected = "expected something like 'data:1,fsdp:-1,tensor:2'"
    if spec == "single":
        return sizes
    for pair in filter(None, (part.strip() for part in spec.split(","))):
        name, _, text = pair.partition(":")
        if name not in ("data", "fsdp", "tensor"):
            raise ValueError(
                f"mesh {spec!r}: unknown axis {name!r}, the axes are data, fsdp, tensor"
            )
        if name in named:
            raise ValueError(f"mesh {spec!r} names {name} twice; {expected}")
        named.append(name)
        parts = text.split("x") if name == "fsdp" else [text]
        try:
            values = [int(part) for part in parts]
        except ValueError:
            raise ValueError(f"mesh {spec!r}: bad size {text!r} of {name}; {expected}") from None
        if len(values) > 2 or any(value < 1 and value != -1 for value in values):
            raise ValueError(f"mesh {spec!r}: bad size {text!r} of {name}; {expected}")
        sizes[name] = values[0]
        if len(values) == 2:
            sizes["fsdp_inner"] = values[1]
    if list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh {spec!r}: only one size may be -1")
    return sizes


def _arrange(shape: tuple[int, ...], devices: list) -> np.ndarray:
    """The devices as an array of this shape, its axes along those of the torus where there is one.

    Several slices are joined along `data`, whose sums alone go over DCN.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if shape[0] % slices:
            raise ValueError(
                f"{slices} slices are joined along data, which must be a multiple of {slices}, "
                f"not {shape[0]}"
            )
        within = (shape[0] // slices, *shape[1:])
        between = (slices, *(1 for _ in shape[1:]))
        return mesh_utils.create_hybrid_device_mesh(
            within, between, devices, allow_split_physical_axes=True
        )
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(shape)


def spec_of(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of an array whose dimensions have these logical axes (None: not split)."""
    entries = (RULES[axis] if axis is not None else () for axis in axes)
    return PartitionSpec(*(entry if len(entry) != 1 else entry[0] for entry in entries))


def sharding_of(mesh: Mesh, axes: tuple[str | None, ...]) -> NamedSharding:
    """The sharding on `mesh` of an array with these logical axes."""
    return NamedSharding(mesh, spec_of(axes))


def abstract_on(mesh: Mesh, shapes, axes):
    """Shapes and dtypes as ShapeDtypeStructs with shardings: for compiling ahead, and for loading.

    Args:
      shapes: a tree of what has a shape and a dtype.
      axes: the same tree with the logical axes of each, a tuple, in its place.
    """
    return jax.tree.map(
        lambda leaf, names: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding_of(mesh, names)
        ),
        shapes, axes,
    )  # fmt: skip


def on_mesh(mesh: Mesh, specs):
    """A tree of PartitionSpecs as NamedShardings."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def local_bytes(tree) -> int:
    """Bytes of one device's part of arrays, or of ShapeDtypeStructs, with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def batch_shards(mesh: Mesh) -> int:
    """The number of parts that the rows of a batch are split in."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


# Inside a shard_map without varying-axes checks, lax.psum would be transposed to another psum and
# count every gradient once a device; here the gradient passes through.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum(x, axis):
    return lax.psum(x, axis)


_sum.defvjp(lambda x, axis: (lax.psum(x, axis), None), lambda axis, _, g: (g,))


@dataclasses.dataclass(frozen=True)
class Parallelism:
    """The mesh as a model uses it: local sizes, gathered weights, sums over `tensor`.

    Between the products that `tensor` splits, each of its shards holds a part of every row
    (sequence parallelism, Korthikanti et al., arXiv 2205.05198): saved activations are that much
    smaller, and the two halves of a sum move the bytes that the sum would. So a parameter that is
    whole on every tensor shard gets a part of its gradient on each, like on the batch's shards.

    With no sizes (the default) every method is the identity: one device, or automatic mode, where
    the partitioner splits the program by the shardings of its arguments. With the sizes of a mesh,
    the model runs inside a `jax.shard_map` over all of its axes and sees local arrays.
    """

    sizes: tuple[tuple[str, int], ...] = ()
    platform: str = ""  # "tpu" and "gpu" take kernels that are written for them

    @classmethod
    def manual(cls, mesh: Mesh) -> "Parallelism":
        """For the body of a shard_map over all axes of `mesh`."""
        return cls(tuple(mesh.shape.items()), mesh.devices.flat[0].platform)

    def size(self, axis: str) -> int:
        return dict(self.sizes).get(axis, 1)

    def local(self, length: int, axis: str) -> int:
        """The part of a dimension of `length` with a logical axis that one device holds."""
        parts = math.prod(self.size(name) for name in RULES[axis])
        if length % parts:
            raise ValueError(
                f"the axis {axis!r} of length {length} cannot be split in {parts} equal parts; "
                "choose a mesh whose sizes divide it"
            )
        return length // parts

    def gather(self, weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        """Gathers a local weight over fsdp; its gradient is scattered the same way back."""
        for dim, axis in enumerate(axes):
            for name in reversed(RULES[axis]):
                if name in FSDP and self.size(name) > 1:
                    weight = lax.all_gather(weight, name, axis=dim, tiled=True)
        return weight

    def seq_shard(self, x: jax.Array) -> jax.Array:
        """This tensor shard's part of whole rows, [B, T, ...] to [B, T / tensor, ...]."""
        part = self.local(x.shape[1], "seq_shard")
        if part == x.shape[1]:
            return x
        return lax.dynamic_slice_in_dim(x, self.tensor_index() * part, part, axis=1)

    def gather_length(self, x: jax.Array) -> jax.Array:
        """Whole rows from the tensor shards' parts; the gradients of all shards are summed."""
        if self.size("tensor") == 1:
            return x
        return lax.all_gather(x, "tensor", axis=1, tiled=True)

    def scatter_length(self, x: jax.Array) -> jax.Array:
        """Sums partial results [B, T, ...] over tensor; each shard keeps its part of the rows."""
        if self.size("tensor") == 1:
            return x
        return lax.psum_scatter(x, "tensor", scatter_dimension=1, tiled=True)

    def sum_over_tensor(self, x: jax.Array) -> jax.Array:
        """Sums what each tensor shard has a part of, such as a softmax' denominator."""
        return _sum(x, "tensor") if self.size("tensor") > 1 else x

    def max_over_tensor(self, x: jax.Array) -> jax.Array:
        """The largest over the tensor shards; has no gradient."""
        return lax.pmax(x, "tensor") if self.size("tensor") > 1 else x

    def tensor_index(self) -> jax.Array | int:
        return lax.axis_index("tensor") if self.size("tensor") > 1 else 0
