"""TPU slices by their two names, and their devices for compiling ahead of time."""

import math

import pytest

from qalign_jax.parallel.chips import CHIPS, Slice, parse_slice


@pytest.mark.parametrize(
    ("name", "slice_"),
    [
        ("v5p:4x4x4", Slice("v5p", (4, 4, 4))),
        ("v5p-128", Slice("v5p", (4, 4, 4))),  # counts cores, two per chip
        ("v4-256", Slice("v4", (4, 4, 8))),
        ("v5e-16", Slice("v5e", (4, 4))),  # counts chips
        ("v5litepod-256", Slice("v5e", (16, 16))),
        ("v6e:2x4", Slice("v6e", (2, 4))),
        ("v5litepod-1", Slice("v5e", (1, 1))),
        ("v6e-1", Slice("v6e", (1, 1))),
    ],
)
def test_a_slice_has_two_names(name, slice_):
    assert parse_slice(name) == slice_


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100:8", "the chips are v4, v5e, v5p, v6e"),
        ("v5p", "a slice is v5p:4x4x4 or v5p-128"),
        ("v5p-100", r"v5p-8 \(2x2x1\), v5p-16"),
        ("v5e:4x4x4", "a v5e slice has 2 dimensions, for example v5e:1x1, v5e:2x2"),
        ("v5e:4xfour", "a v5e slice has 2 dimensions"),
        ("v4:0x2x2", "a v4 slice has 3 dimensions"),
        ("v5e:1000x1000", "the largest have 8,960 chips"),
    ],
)
def test_a_wrong_name_lists_the_right_ones(name, message):
    with pytest.raises(ValueError, match=message):
        parse_slice(name)


def test_every_usual_slice_of_a_chip_is_named_by_its_cores_or_chips():
    for chip, known in CHIPS.items():
        for shape in known.slices:
            size = math.prod(map(int, shape.split("x")))
            assert parse_slice(f"{chip}-{size * known.cores}").name == f"{chip}:{shape}"


def test_larger_slices_are_of_the_same_chip():
    assert [slice_.name for slice_ in parse_slice("v5e-16").larger()] == ["v5e:4x8", "v5e:8x8"]
    assert parse_slice("v5e-256").larger() == []
    assert parse_slice("v5e-1").larger() == [Slice("v5e", (2, 2)), Slice("v5e", (2, 4))]


pytest.importorskip("libtpu")


def test_the_compilers_devices_make_one_v4_chip_one_device_and_slices_add_up():
    assert len(parse_slice("v4-8").devices()) == 4
    two = Slice("v5e", (4, 4), count=2)
    devices = two.devices()
    assert len(devices) == two.size == 32
    assert {device.slice_index for device in devices} == {0, 1}


def test_a_shape_that_the_compiler_does_not_know_is_refused_by_name():
    with pytest.raises(ValueError, match=r"v5e:3x5: .*; the usual ones are v5e:1x1, v5e:2x2"):
        Slice("v5e", (3, 5)).devices()
