"""How many rows are decoded at once in the memory that devices have beside the weights."""

import dataclasses
import json
import pathlib

import jax

from qalign_jax.decoding.draft_length import LENGTHS
from qalign_jax.decoding.plan import Plan, abstract_caches, empty_caches, round_up
from qalign_jax.parallel import hosts
from qalign_jax.parallel.chips import GIB
from qalign_jax.parallel.mesh import batch_shards, local_bytes

MOST_SLOTS = 256  # from there on a step takes as much longer as it decodes more rows
_RESERVED = 0.1  # of the free memory, for what programs compute with


def with_slots(plan: Plan, prompts: int, free: int | None) -> Plan:
    """The plan with no more slots than prompts, and with what memory holds where it asks for 0.

    Args:
      prompts: how many are decoded.
      free: bytes of a device beside the weights; None where nothing tells.

    Raises:
      ValueError: memory does not hold the plan's slots; how many it does.
    """
    shards = batch_shards(plan.mesh) if plan.mesh else 1
    # powers of two, so that similar runs share a program
    slots = min(plan.slots or MOST_SLOTS, 1 << (prompts - 1).bit_length())
    if free is not None:
        part = _part_bytes(dataclasses.replace(plan, slots=shards))
        fitting = max(0, int(free * (1 - _RESERVED))) // part * shards
        if fitting < (slots if plan.slots else 1):
            remedy = f"{fitting} fit: give slots={fitting}, or" if fitting else "none fits;"
            raise ValueError(
                f"the caches of {slots} slots with {plan.length} tokens need "
                f"{-(-slots // shards) * part / GIB:.2f} GiB of a device, which has "
                f"{free / GIB:.2f} GiB beside the weights; {remedy} take cache_dtype=int8, or a "
                "larger mesh"
            )
        if not plan.slots:
            slots = min(slots, 1 << (fitting.bit_length() - 1))
    return dataclasses.replace(plan, slots=round_up(slots, shards))


def free_bytes(plan: Plan) -> int | None:
    """Free memory of the fullest of process 0's devices, in bytes; None where nothing tells.

    The same in every process: all of them must call it, and take as many slots.
    """
    return json.loads(hosts.broadcast_text(json.dumps(_own_free_bytes(plan))))


def _own_free_bytes(plan: Plan) -> int | None:
    devices = plan.mesh.local_devices if plan.mesh else jax.local_devices()[:1]
    found = []
    for device in devices:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            found.append(stats["bytes_limit"] - stats["bytes_in_use"])
    if found:
        return min(found)
    memory = pathlib.Path("/proc/meminfo")
    if devices[0].platform == "cpu" and memory.exists():
        lines = dict(line.split(":") for line in memory.read_text().splitlines())
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024 // len(devices)
    return None


def _part_bytes(plan: Plan) -> int:
    """Bytes of a device for a plan with one slot for every part that the mesh splits rows in."""
    if plan.mesh:
        caches = local_bytes(abstract_caches(plan))
    else:
        shapes = jax.eval_shape(lambda: empty_caches(plan))
        caches = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    outputs = plan.slots * plan.length * 4 * (5 if plan.trace else 1)
    return caches + outputs + (_round_bytes(plan) if plan.draft else 0)


def _round_bytes(plan: Plan) -> int:
    """About what the logits of a round take of a device, where as much is drafted as "auto" may.

    Greedy a copy a model and one combined are there at once, in sampling three times as many
    (measured on a CPU).
    """
    rows = plan.slots // (batch_shards(plan.mesh) if plan.mesh else 1)
    vocab = max(model.config.padded_vocab for model in plan.models)
    copies = (len(plan.models) + 1) * (3 if plan.sampling.temperature else 1)
    tensor = plan.mesh.shape["tensor"] if plan.mesh else 1
    return rows * (LENGTHS[-1] + 1) * vocab * 4 * copies // tensor
