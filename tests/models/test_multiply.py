"""A projection's gradients, in the order that suits CPUs, are those of its einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qalign_jax.models.multiply import multiply


@pytest.mark.parametrize(
    ("equation", "x", "weight"),
    [
        ("btd,dnh->btnh", (2, 5, 6), (6, 3, 4)),  # wider than x
        ("btd,dkh->btkh", (2, 5, 6), (6, 1, 4)),  # narrower than x
        ("btnh,nhd->btd", (2, 5, 3, 4), (3, 4, 6)),
        ("btf,fd->btd", (2, 5, 3), (3, 7)),
    ],
)
def test_gradients_are_those_of_the_einsum(equation, x, weight):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in (x, weight)]
    expected, einsum_gradients = jax.vjp(lambda *a: jnp.einsum(equation, *a), *arrays)
    found, gradients = jax.vjp(lambda *a: multiply(equation, *a), *arrays)
    np.testing.assert_array_equal(found, expected)
    of_output = rng.normal(size=expected.shape).astype(np.float32)
    for ours, theirs in zip(gradients(of_output), einsum_gradients(of_output), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
