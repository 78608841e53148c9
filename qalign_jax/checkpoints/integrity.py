"""What makes a checkpoint whole: the checksums of its arrays, and finite values.

A checksum is a sum over the elements, modulo 2^32, of each element's bits mixed with its index: it
is the same on every mesh, and a change of one element always changes it. It is computed on the
devices that hold the array, before saving and after loading, so that whatever lies between is
checked, at no cost in reading.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from qalign_jax.faults import storage
from qalign_jax.faults.checksums import Damaged
from qalign_jax.faults.storage import StorageFailed
from qalign_jax.parallel import hosts

# What a model's parameters are loaded in, from whichever of them is stored.
LOADED = ("float32", "bfloat16")

# The keys in a checkpoint's own metadata.
CHECKSUMS, STEP = "checksums", "step"
# TensorStore's statuses of files that cannot be read now; the system's other errors are UNKNOWN.
_UNREADABLE = re.compile("(PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN|ABORTED): ")
# name of the array -> dtype in which it is loaded -> 16 hexadecimal digits
Checksums = Mapping[str, Mapping[str, str]]


def metadata(step: int, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What is saved beside the parts of a checkpoint, `params` among them, so that it is checked.

    Raises:
      FloatingPointError: a value that is not finite.
    """
    if name := not_finite(parts):
        raise FloatingPointError(f"{name} holds values that are not finite")
    found = {}
    for part, tree in parts.items():
        found |= checksums({part: tree}, LOADED if part == "params" else ())
    return {STEP: step, CHECKSUMS: found}


def load(step_dir, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a checkpoint, of those in `abstract`, compared with their checksums.

    In several processes all of them must call this; they find the same, as each reads files of its
    own.

    Args:
      abstract: name of the part -> tree of shapes, dtypes and shardings; parts that the checkpoint
        does not have are left out.

    Raises:
      Damaged: it is not as it was saved, or holds values that are not finite.
      StorageFailed: it may be whole, and cannot be read now.
    """
    parts, expected, failed = {}, None, None
    try:
        parts, expected = _read(step_dir, abstract)
    except Exception as error:  # of any kind: what damage makes of a file is not foreseen
        failed = _judged(step_dir, error)
    if not hosts.all_of(not isinstance(failed, Damaged)):
        raise failed or Damaged(f"{step_dir} is damaged, as another host finds")
    if not hosts.all_of(failed is None):
        raise failed or StorageFailed(f"{step_dir} cannot be read by another host")
    try:
        if expected is not None:
            check_checksums(parts, expected)  # of values that were finite
        elif name := not_finite(parts):
            raise Damaged(f"{name} holds values that are not finite")
    except Damaged as error:
        raise Damaged(f"{step_dir} is damaged: {error}") from None
    return parts


def _read(step_dir, abstract: Mapping[str, Any]) -> tuple[dict[str, Any], Checksums | None]:
    """The parts and the checksums that they were saved with, None by an older version."""
    stored = ocp.checkpointables_metadata(step_dir)
    if stored.init_timestamp_nsecs is None:  # Orbax reads what is left without a word
        raise Damaged("its _CHECKPOINT_METADATA is missing")
    there = {name: tree for name, tree in abstract.items() if name in stored.metadata}
    own: Any = stored.custom_metadata or {}
    expected: Checksums | None = own.get(CHECKSUMS)
    if own.get(STEP, step_dir.name) not in (step_dir.name, int(step_dir.name)):
        raise Damaged(f"it was saved as step {own[STEP]}")
    if expected is None:
        logging.warning("%s has no checksums: an older version wrote it", step_dir)
    for part in {name.partition("/")[0] for name in expected or ("params/",)}:
        if part in abstract and part not in there:
            raise Damaged(f"{part} is missing")
    return ocp.load_checkpointables(step_dir, there), expected


def stored_params(step_dir) -> Any:
    """The tree of what a checkpoint says of its parameters: shapes and dtypes.

    Raises:
      Damaged, StorageFailed: as `load`.
    """
    try:
        return ocp.checkpointables_metadata(step_dir).metadata["params"]
    except Exception as error:
        raise _judged(step_dir, error) from None


def _judged(step_dir, error: Exception) -> Exception:
    """Damaged, where an error of reading comes of what is stored; else another, or the same."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__:
        chain.append(chain[-1].__cause__)
    reason = (str(chain[-1]).strip() or repr(chain[-1])).splitlines()[0][:300]
    absent = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    failing = any(isinstance(each, OSError) and not isinstance(each, absent) for each in chain)
    failing |= any(_UNREADABLE.match(str(each)) is not None for each in chain)
    if words := storage.failure(error) or (failing and reason):
        return StorageFailed(f"{step_dir} cannot be read: {words}. Start the same command again")
    # devices or a host without memory, a host that others have waited for
    if any(isinstance(each, (jax.errors.JaxRuntimeError, MemoryError)) for each in chain):
        return error
    if any("barrier" in str(each).lower() for each in chain):
        return StorageFailed(f"{step_dir} was not read by all hosts: {reason}")
    return Damaged(f"{step_dir} is damaged: {reason}")


def checksums(tree: Any, also_in: tuple[str, ...] = ()) -> Checksums:
    """The checksums of all arrays by name, like params/embed/embedding.

    Args:
      tree: arrays, sharded or not; in several processes all of them must call this.
      also_in: float dtypes besides an array's own; its checksum there is that of its cast.
    """
    found = {}
    for name, leaf in _named(tree):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        dtypes = tuple(dict.fromkeys((leaf.dtype.name, *(also_in if floating else ()))))
        # waited for: of several programs at once, CPU devices may each sum in another order
        sums = np.asarray(_checksum(dtypes, _everywhere(leaf))(leaf))
        found[name] = {
            dtype: f"{int(high):08x}{int(low):08x}"
            for dtype, (high, low) in zip(dtypes, sums, strict=True)
        }
    return found


def check_checksums(tree: Any, expected: Checksums) -> None:
    """Raises Damaged where an array has another checksum than the expected in its dtype."""
    for name, found in checksums(tree).items():
        [(dtype, value)] = found.items()
        if expected.get(name, {}).get(dtype) != value:
            raise Damaged(f"the values of {name} are not those that were saved")


def not_finite(tree: Any) -> str:
    """The name of the first array with a NaN or an infinity, and its dtype; "" without one."""
    for name, leaf in _named(tree):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        if floating and not _is_finite(_everywhere(leaf))(leaf):
            return f"{name} ({leaf.dtype.name})"
    return ""


def check_finite(tree: Any, where: Any) -> None:
    """Raises a ValueError where an array of weights holds a NaN or an infinity."""
    if name := not_finite(tree):
        raise ValueError(
            f"{where}: {name} holds values that are not finite. float16 ends at 65,504: where it "
            "was asked for, take bfloat16 or float32; else get the weights again"
        )


def _named(tree: Any):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _everywhere(leaf: jax.Array) -> NamedSharding | None:
    """The sharding of a result that every process can read."""
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return None


@functools.cache
def _is_finite(sharding):
    return jax.jit(lambda leaf: jnp.isfinite(leaf).all(), out_shardings=sharding)


@functools.cache
def _checksum(dtypes: tuple[str, ...], sharding):
    def sums(leaf):
        index = jnp.uint32(0)  # in row-major order, modulo 2^32
        for axis, size in enumerate(leaf.shape):
            steps = lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            index = index * np.uint32(size % 2**32) + steps
        found = []
        for dtype in dtypes:
            mixed = _mixed(_bits(leaf, dtype) ^ index * np.uint32(0x9E3779B9))
            found.append(jnp.stack([jnp.sum(mixed), jnp.sum(mixed * (index | 1))]))
        return jnp.stack(found)

    return jax.jit(sums, out_shardings=sharding)


def _mixed(bits):
    """A one-to-one mapping of uint32 whose every output bit depends on all input bits.

    The finaliser of MurmurHash3 (Appleby, public domain).
    """
    bits ^= bits >> 16
    bits *= np.uint32(0x85EBCA6B)
    bits ^= bits >> 13
    bits *= np.uint32(0xC2B2AE35)
    return bits ^ bits >> 16


def _bits(leaf, dtype: str):
    """The bits of the elements, cast to `dtype`, as uint32.

    Rounding to bfloat16 is written out in integers: devices may flush subnormal numbers.
    """
    if leaf.dtype.name != dtype and leaf.dtype == jnp.float16:
        leaf = leaf.astype(jnp.float32)
    width = jnp.uint16 if leaf.dtype.itemsize == 2 else jnp.uint32
    bits = lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
    match leaf.dtype.name, dtype:
        case "float32", "bfloat16":
            return bits + 0x7FFF + (bits >> 16 & 1) >> 16  # to nearest, ties to even
        case "bfloat16", "float32":
            return bits << 16
    return bits
