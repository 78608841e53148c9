"""What one device does in one call of a compiled program: collectives, and bytes through HBM.

Read from the program's text, without a device.
"""

import collections
import dataclasses
import math
import re

import numpy as np

from qalign_jax.ahead.hlo import Computation, Instruction, read_computations

_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
_SLICES = ("dynamic-slice", "slice", "gather", "dynamic-slice-start", "slice-start")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is the update
_RENAMES = ("bitcast", "get-tuple-element", "optimization-barrier", "opt-barrier")
_FREE = {
    *("parameter", "constant", "tuple", "after-all", "add-dependency", "domain", "iota"),
    *("partition-id", "replica-id", "while", "conditional", "call", "async-update"),
    *_RENAMES,
}
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast", "Sharding", "AssumeGatherIndicesInBound")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation, and how often a call executes it.

    `bytes` is the full-size side of one execution: the result of an all-gather, the operand of a
    reduce-scatter or an all-reduce, else what is sent; padding that the compiler added to a
    reduce-scatter counts. A combined collective sums its arrays and has the dtype of the largest.
    """

    kind: str  # all-gather, reduce-scatter, all-reduce, collective-permute or all-to-all
    dtype: str
    bytes: int
    members: tuple[int, ...]  # devices of one of its groups, by their place in the mesh
    times: float  # executions in a call
    source: str  # op_name of its metadata, "" if it has none

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device sends in one execution, by the ring algorithms."""
        ring = 1 - 1 / len(self.members)
        rounds = {"all-gather": ring, "reduce-scatter": ring, "all-reduce": 2 * ring}
        return self.bytes * rounds.get(self.kind, 1)


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device does in one call.

    `hbm_bytes` is a model: each instruction reads its operands from HBM once and writes its result
    to HBM once, unless they are in another memory; slices and updates in place move only their
    part. Tiles are taken as unpadded, and a matrix product as reading each operand once.
    """

    collectives: tuple[Collective, ...]
    hbm_bytes: int

    def bytes_by_kind(self) -> dict[str, dict[str, int]]:
        """Bytes of all executions, by the kind of collective and its dtype."""
        total = collections.defaultdict(lambda: collections.defaultdict(float))
        for each in self.collectives:
            total[each.kind][each.dtype] += each.bytes * each.times
        return {
            kind: {dtype: round(size) for dtype, size in dtypes.items()}
            for kind, dtypes in total.items()
        }

    def part(self, parts: int) -> "Program":
        """One of so many equal parts of a call, such as a token of a loop over tokens."""
        collectives = (
            dataclasses.replace(each, times=each.times / parts) for each in self.collectives
        )
        return Program(tuple(collectives), round(self.hbm_bytes / parts))

    @property
    def wire_bytes(self) -> int:
        """Bytes that one device sends over the interconnect in one call."""
        return round(sum(each.wire_bytes * each.times for each in self.collectives))


def read_program(text: str, trips: int = 1) -> Program:
    """Reads the text of a compiled program, as `compile_and_print` gives it.

    Loops multiply their body by the trip count, by `trips` where the text does not give it. Of the
    branches of a conditional the one that moves most counts. Lines that cannot be parsed are
    skipped; a text without an ENTRY gives an empty Program.
    """
    module = _Module(text, trips)
    return module.cost(module.entry)


class _Module:
    def __init__(self, text: str, trips: int = 1):
        self.trips = trips
        self.computations, self.entry = read_computations(text)
        header = text.partition("\n")[0]
        counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
        self.devices = math.prod(map(int, counts))
        self.costs = {}

    def cost(self, name: str) -> Program:
        """What one execution of a computation does, with all that it calls."""
        if name not in self.costs:
            self.costs[name] = Program((), 0)  # what a computation that calls itself adds
            self.costs[name] = self._cost(self.computations.get(name, Computation("", {}, "")))
        return self.costs[name]

    def _cost(self, computation: Computation) -> Program:
        found, hbm_bytes, seen = [], 0, set()
        for each in computation.instructions.values():
            times, inner = 1, None
            if each.opcode == "while":
                times, inner = self.trip_count(each, computation), self.cost(each.called("body"))
            elif each.opcode in ("call", "call-start", "async-start"):
                inner = self.cost(each.called("to_apply", "calls"))
            elif offloaded := re.search(r"\bcalled_computations=\{%?([\w.\-]+)", each.attributes):
                inner = self.cost(offloaded[1])  # a program of the SparseCores
            elif each.opcode == "conditional":
                inner = max(
                    map(self.cost, _branches(each)),
                    key=lambda branch: branch.hbm_bytes + branch.wire_bytes,
                    default=None,
                )
            if inner:
                found += [dataclasses.replace(c, times=c.times * times) for c in inner.collectives]
                hbm_bytes += inner.hbm_bytes * times
            else:
                found += self.collectives(each, computation, seen)
                hbm_bytes += self.traffic(each, computation)
        return Program(tuple(found), hbm_bytes)

    def trip_count(self, loop: Instruction, computation: Computation) -> int:
        known = re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.called("condition"))
        if not condition:
            return self.trips

        def integer(value: Instruction | None, path: list) -> int | None:
            # path: the calls that lead to where the value stands, outermost first
            where = path[-1][1]
            if value is None:
                return None
            if value.opcode == "constant":
                return int(value.argument) if value.argument.strip().isdigit() else None
            if value.opcode in ("copy", "convert", "bitcast", "broadcast", "reshape"):
                return integer(where.operand(value, 0), path)
            if value.opcode == "parameter" and len(path) > 2 and value.argument.strip().isdigit():
                call, _ = path[-1]
                return integer(path[-2][1].operand(call, int(value.argument)), path[:-1])
            index = re.search(r"\bindex=(\d+)", value.attributes)
            if value.opcode == "get-tuple-element" and index and len(path) == 2:
                initial = computation.operand(loop, 0)  # a bound that the loop carries unchanged
                if initial and initial.opcode == "tuple":
                    return integer(computation.operand(initial, int(index[1])), path[:1])
            return None

        def bounds(path: list):
            for each in path[-1][1].instructions.values():
                direction = re.search(r"\bdirection=(LT|LE|NE|GT|GE)", each.attributes)
                if each.opcode == "compare" and direction:
                    place = 0 if direction[1].startswith("G") else 1
                    bound = integer(path[-1][1].operand(each, place), path)
                    if bound is not None:
                        yield bound + (direction[1] in ("LE", "GE"))
                inner = self.computations.get(each.called("calls", "to_apply"))
                if inner and len(path) < 8:
                    yield from bounds([*path, (each, inner)])

        return next(bounds([(None, computation), (loop, condition)]), self.trips)

    def collectives(self, each: Instruction, computation: Computation, seen: set, caller=None):
        """The collectives that an instruction executes; in a fusion, those not in `seen`.

        An asynchronous collective has parts in several fusions, its start first, all with one
        channel and one chain. The channel alone does not identify it: those of shard_map are all 1.
        """
        if each.opcode == "fusion" and (inner := self.computations.get(each.called("calls"))):
            for part in inner.instructions.values():
                yield from self.collectives(part, inner, seen, each)
            return
        kind = each.opcode.removesuffix("-start")
        if kind not in _KINDS:
            return
        whole = caller and computation.name.startswith("all-reduce-scatter")
        if kind == "all-gather":
            arrays = each.results
        else:
            arrays = [array for name in each.operands for array in computation.arrays(name)]
        found = Collective(
            kind="reduce-scatter" if whole else kind,
            dtype=max(arrays, key=lambda array: array.bytes).dtype if arrays else "",
            bytes=sum(array.bytes for array in arrays),
            members=_members(each.attributes, self.devices),
            times=1,
            source=each.source or (caller.source if caller else ""),
        )
        if caller and not whole and "channel_id=" in each.attributes:
            label = re.findall(r'\b(?:channel_id=|chain_id=")(\d+)', each.attributes)
            key = (found, *label)
            if key in seen:
                return
            seen.add(key)
        yield found

    def traffic(self, each: Instruction, computation: Computation) -> int:
        """Bytes that an instruction which calls no program moves from and to HBM."""
        if each.opcode in _FREE or each.opcode.endswith(("-done", "-update")):
            return 0
        if re.search(rf'custom_call_target="(?:{"|".join(_FREE_TARGETS)})"', each.attributes):
            return 0
        read = {}  # an operand that is listed twice is read once
        for place, name in enumerate(each.operands):
            if any(array.in_hbm for array in computation.arrays(name)):
                read[name] = max(read.get(name, 0), self.read(each, place, computation))
        written = zip(self.written(each, computation), each.results, strict=False)
        return sum(read.values()) + sum(size for size, array in written if array.in_hbm)

    def read(self, each: Instruction, place: int, computation: Computation) -> int:
        """Bytes of its operand `place` that an instruction reads, in whichever memory."""
        arrays = computation.arrays(each.operands[place])
        size = sum(array.bytes for array in arrays if array.in_hbm)
        size = size or sum(array.bytes for array in arrays)
        if each.opcode in _SLICES and place == 0:
            return min(size, sum(array.bytes for array in each.results))
        if each.opcode in _UPDATES and place == 0:
            return 0
        if each.opcode == "fusion" and (inner := self.computations.get(each.called("calls"))):
            parameter = inner.parameters.get(place)
            return min(size, self.read_by_users(parameter, inner)) if parameter else size
        return size

    def read_by_users(self, value: Instruction, computation: Computation) -> int:
        """Bytes that a fused computation reads of one of its values."""
        total = 0
        for user, place in computation.users[value.name]:
            # an int8 weight is passed on in other tiles, in the same memory
            aliased = user.opcode == "fusion" and "output_to_operand_aliasing" in user.attributes
            if user.opcode in _RENAMES or aliased:
                is_root = user is computation.root
                total += _size(user) if is_root else self.read_by_users(user, computation)
            elif user.opcode != "tuple" and not _later_part(user, computation):
                total += self.read(user, place, computation)
        return total

    def written(self, each: Instruction, computation: Computation) -> list[int]:
        """Bytes that an instruction writes of each array of its result."""
        if each.opcode in _UPDATES:
            update = computation.operand(each, _UPDATES[each.opcode])
            return [_size(update) if update else 0]
        if each.opcode == "fusion" and (inner := self.computations.get(each.called("calls"))):
            if inner.root and inner.root.opcode == "tuple":
                sizes = []
                for name in inner.root.operands:
                    part = inner.instructions.get(name)
                    sizes += self.written_by_root(part, inner) if part else [0]
                return sizes
            if inner.root and _through_renames(inner.root, inner).opcode != "parameter":
                return self.written_by_root(inner.root, inner)
        return [array.bytes for array in each.results]

    def written_by_root(self, root: Instruction, computation: Computation) -> list[int]:
        root = _through_renames(root, computation)
        if root.opcode == "parameter" or _later_part(root, computation):
            return [0] * len(root.results)
        if root.is_async_start:  # its operand, passed on, then what it gathers
            return [0, *(array.bytes for array in root.results[1:])]
        return self.written(root, computation)


def _later_part(each: Instruction, computation: Computation) -> bool:
    """Whether it goes on with an asynchronous collective, whose start has been counted."""
    if each.opcode == "custom-call":
        return 'custom_call_target="AsyncCollectiveDone"' in each.attributes
    if each.opcode not in _KINDS or computation.name.startswith("all-reduce-scatter"):
        return False
    if computation.name.startswith("async_collective_fusion"):
        return True
    return any(_later_part(user, computation) for user, _ in computation.users[each.name])


def _through_renames(each: Instruction, computation: Computation) -> Instruction:
    while each.opcode == "bitcast" and (operand := computation.operand(each, 0)):
        each = operand
    return each


def _size(each: Instruction) -> int:
    return sum(array.bytes for array in each.results)


def _branches(each: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", each.attributes)
    if listed:
        return re.findall(r"%([\w.\-]+)", listed[1])
    return re.findall(r"\b(?:true|false)_computation=%?([\w.\-]+)", each.attributes)


def _members(attributes: str, devices: int) -> tuple[int, ...]:
    """The first group of a collective: {{0,1},{2,3}}, [2,2]<=[2,2]T(1,0), mesh['a'=2,'b'=2] {'b'},
    {} for all devices, or the first pair of a permute that is no loop.
    """
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        pairs = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)", pairs[0])]
        return next((pair for pair in pairs if pair[0] != pair[1]), (0,))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(
        r"replica_groups=\[(?:\d+,)*(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        sizes = [int(size) for size in iota[2].split(",")]
        order = [int(place) for place in iota[3].split(",")] if iota[3] else range(len(sizes))
        numbers = np.arange(math.prod(sizes)).reshape(sizes).transpose(order)
        return tuple(numbers.reshape(-1)[: int(iota[1])].tolist())
    if mesh := re.search(r"replica_groups=@?mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = {name: int(n) for name, n in re.findall(r"['\"]?(\w+)['\"]?=(\d+)", mesh[1])}
        # a part of an axis, (2)4, gives the count outside of it and its own size
        axes = {
            name: (int(outside or 1), int(size or sizes[name]))
            for name, outside, size in re.findall(r"['\"](\w+)['\"](?::\((\d+)\)(\d+))?", mesh[2])
        }
        shape = []
        for name, size in sizes.items():
            outside, own = axes.get(name, (size, 1))
            shape += [outside, own, size // outside // own]
        numbers = np.arange(math.prod(sizes.values())).reshape(shape)
        first = tuple(slice(None) if place % 3 == 1 else 0 for place in range(len(shape)))
        return tuple(numbers[first].reshape(-1).tolist())
    return tuple(range(devices))
