"""Meshes from text, and errors where they do not fit."""

import jax
import pytest

from qalign_jax.parallel.mesh import AXES, Parallelism, make_mesh, spec_of


def sizes(mesh):
    return tuple(mesh.shape[axis] for axis in AXES)


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("fsdp:-1", (1, 8, 1, 1)),
        ("data:1,fsdp:-1,tensor:2", (1, 4, 1, 2)),
        ("data:2, fsdp:2x2", (2, 2, 2, 1)),
        ("tensor:8", (1, 1, 1, 8)),
    ],
)
def test_text_gives_the_sizes_of_the_axes(spec, expected):
    assert sizes(make_mesh(spec)) == expected


def test_a_mesh_of_some_devices_only():
    assert sizes(make_mesh("", jax.devices()[:1])) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("fsdp:3", "8 are here"),
        ("fsdp:-1,tensor:3", "8 are here"),
        ("model:2", "unknown axis 'model'"),
        ("fsdp:two", "bad size"),
        ("fsdp:0", "bad size"),
        ("data:-1,fsdp:-1", "only one"),
        ("tensor:2x2", "bad size"),
    ],
)
def test_a_mesh_that_cannot_be_made_says_why(spec, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(spec)


def test_a_weight_is_split_over_fsdp_and_tensor():
    assert spec_of(("layers", "embed", "heads", "head_size")) == jax.P(
        None, ("fsdp", "fsdp_inner"), "tensor", None
    )


def test_a_length_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="kv_heads"):
        Parallelism.manual(make_mesh("tensor:8")).local(4, "kv_heads")
