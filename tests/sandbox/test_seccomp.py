"""The seccomp filter's decisions, by running its instructions, on both architectures."""

import struct

import pytest

from qalign_jax.sandbox.seccomp import allowed, make_filter

X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
ALLOW, EPERM, KILL = 0x7FFF0000, 0x00050001, 0x80000000


def decide(instructions: bytes, arch: int, number: int) -> int:
    """What the filter returns for a system call."""
    data = struct.pack("=II", number, arch)
    program = list(struct.iter_unpack("=HBBI", instructions))
    counter = accumulator = 0
    while True:
        code, if_true, if_false, k = program[counter]
        counter += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif code == 0x15:
            counter += if_true if accumulator == k else if_false
        else:
            assert code == 0x06
            return k


@pytest.mark.parametrize(
    ("machine", "arch", "inside", "outside"),
    [
        # read, write, mmap, openat, exit_group; clone, execve, socket, ptrace, kill, mount
        ("x86_64", X86_64, (0, 1, 9, 257, 231), (56, 59, 41, 101, 62, 165, 435, 317)),
        ("aarch64", AARCH64, (63, 64, 222, 56, 94), (220, 221, 198, 117, 129, 40, 435, 277)),
    ],
)
def test_listed_calls_are_allowed_and_every_other_fails(machine, arch, inside, outside):
    instructions = make_filter(machine)
    assert {decide(instructions, arch, number) for number in inside} == {ALLOW}
    assert {decide(instructions, arch, number) for number in outside} == {EPERM}
    numbers = set(allowed(machine).values())
    assert len(numbers) == len(allowed(machine)) > 60
    for number in range(600):
        assert (decide(instructions, arch, number) == ALLOW) == (number in numbers)
    assert decide(instructions, arch, 0x40000000) == EPERM  # x32's read
    assert decide(instructions, I386, 20) == KILL


def test_another_machine_is_refused():
    with pytest.raises(ValueError, match=r"machine 'riscv64': .* knows x86_64, aarch64"):
        make_filter("riscv64")
