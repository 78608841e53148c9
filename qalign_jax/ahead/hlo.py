"""The text of a compiled program (HLO after all passes), read into its computations.

It holds every loop, every collective and the memory space of every buffer.
"""

import collections
import dataclasses
import functools
import math
import re

_HEADER = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s+(?:\(.*->.*)?\{\s*$")
_START = re.compile(r"\s+(ROOT\s+)?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_END = re.compile(r'\}(?:, execution_thread="[^"]*")?$')


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str
    bytes: int
    in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    argument: str  # the text between the parentheses
    attributes: str

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(_REFERENCE.findall(self.argument))

    @functools.cached_property
    def results(self) -> tuple[Array, ...]:
        """The arrays it makes: a -start also returns its operands and its semaphores."""
        shape = self.shape
        if self.opcode.endswith("-start") and self.opcode != "all-reduce-start":
            elements = _elements(shape)
            place = 0 if self.opcode == "copy-start" else 1
            shape = elements[place] if len(elements) > 1 else shape
        return _arrays(shape)

    @functools.cached_property
    def is_async_start(self) -> bool:
        return 'custom_call_target="AsyncCollectiveStart"' in self.attributes

    @functools.cached_property
    def source(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def called(self, *names: str) -> str:
        found = re.search(rf"\b(?:{'|'.join(names)})=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


class Computation:
    def __init__(self, name: str, instructions: dict[str, Instruction], root: str):
        self.name, self.instructions = name, instructions
        self.root = instructions.get(root)
        self.users = collections.defaultdict(list)  # name -> (user, which operand)
        self.parameters = {}  # index -> instruction
        for each in instructions.values():
            for place, operand in enumerate(each.operands):
                self.users[operand].append((each, place))
            if each.opcode == "parameter" and each.argument.strip().isdigit():
                self.parameters[int(each.argument)] = each

    def arrays(self, name: str) -> tuple[Array, ...]:
        found = self.instructions.get(name)
        return found.results if found else ()

    def operand(self, instruction: Instruction, place: int) -> Instruction | None:
        names = instruction.operands
        return self.instructions.get(names[place]) if place < len(names) else None


def _arrays(shape: str) -> tuple[Array, ...]:
    arrays = []
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        bits = re.match(r"(?:bf|[fsuc])(\d+)", dtype)
        bits = int(bits[1]) if bits else 8 * (dtype == "pred")
        elements = math.prod(int(each) for each in re.findall(r"\d+", dimensions))
        # S(1) is VMEM, the other numbers are scalar memory, semaphores or the host
        arrays.append(Array(dtype, math.ceil(elements * bits / 8), "S(" not in layout))
    return tuple(arrays)


def _elements(shape: str) -> list[str]:
    """The elements of a tuple's shape, themselves perhaps tuples."""
    elements, depth, start = [], 0, 1
    for place, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (depth == 0 and place == len(shape) - 1):
            elements.append(shape[start:place])
            start = place + 1
    return elements


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`, -1 if none does."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    return -1


def _instruction(text: str) -> tuple[Instruction, bool] | None:
    """The instruction of a line and whether it is the root, None if the line is none."""
    start = _START.match(text)
    if not start:
        return None
    place = start.end()
    end = _closing(text, place) if text.startswith("(", place) else text.find(" ", place)
    opcode = _OPCODE.match(text, end) if end > 0 else None
    if not opcode or (close := _closing(text, opcode.end() - 1)) < 0:
        return None
    argument = text[opcode.end() : close - 1]
    each = Instruction(start[2], text[place:end], opcode[1], argument, text[close:])
    return each, bool(start[1])


def read_computations(text: str) -> tuple[dict[str, Computation], str]:
    """The computations by name, and the name of the entry.

    An instruction may go on for several lines, which can begin with a brace: the metadata of a
    Pallas kernel does. Only a line that is a brace and at most the thread, in no string, ends one.
    """
    computations, entry = {}, ""
    name, lines, in_string = None, [], False
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines, in_string = header[2], [], False
            entry = name if header[1] else entry
        elif name is not None and _END.match(line) and not in_string:
            found = [each for each in map(_instruction, lines) if each]
            root = next((each.name for each, is_root in found if is_root), "")
            computations[name] = Computation(name, {each.name: each for each, _ in found}, root)
            name = None
        elif name is not None:
            if in_string or not _START.match(line):
                lines[-1:] = ["\n".join([*lines[-1:], line])]
            else:
                lines.append(line)
            if re.sub(r"\\.", "", line).count('"') % 2:
                in_string = not in_string
    return computations, entry
