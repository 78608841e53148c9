"""The distribution of samples on logits whose probabilities are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qalign_jax.decoding.sampling import Sampling, choose, row_keys

PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
DRAWS = 20_000


def frequencies(sampling):
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)), (DRAWS, 5))
    requests = jnp.arange(DRAWS)
    keys = row_keys(jax.random.key(sampling.seed), requests, requests % 7)
    return np.bincount(choose(sampling, logits, keys), minlength=5) / DRAWS


def assert_drawn_from(observed, expected):
    """Chi-square below the 99.9 % point of four degrees of freedom, 18.5."""
    assert (observed[expected == 0] == 0).all()
    some = expected > 0
    assert (DRAWS * (observed - expected)[some] ** 2 / expected[some]).sum() < 18.5


def test_samples_follow_the_probabilities():
    assert_drawn_from(frequencies(Sampling(1.0)), PROBABILITIES)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    assert_drawn_from(frequencies(Sampling(temperature)), expected / expected.sum())


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, [1]), (0.6, [1, 3]), (0.7, [1, 3, 4])])
def test_top_p_keeps_the_most_probable_that_reach_it(top_p, kept):
    expected = np.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    assert_drawn_from(frequencies(Sampling(1.0, top_p)), expected)


def test_top_p_counts_after_temperature():
    # at temperature 2 the two most probable tokens hold 0.30 + 0.23 of the mass, not 0.65
    expected = PROBABILITIES**0.5 * (PROBABILITIES >= 0.2)
    assert_drawn_from(frequencies(Sampling(2.0, 0.6)), expected / expected.sum())


def test_temperature_zero_takes_the_most_probable():
    assert frequencies(Sampling(0.0, 0.5))[1] == 1.0


def test_the_smallest_top_p_is_greedy():
    assert frequencies(Sampling(1.0, 1e-9))[1] == 1.0


def test_seeds_draw_differently():
    assert (frequencies(Sampling(1.0, seed=1)) != frequencies(Sampling(1.0, seed=2))).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)
