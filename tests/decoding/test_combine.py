"""Proxy-tuning against a torch loop without a cache that combines three models' logits."""

import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qalign_jax.decoding.combine import FirstModel, ProxyTuning
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.slots import advance, fill
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from qalign_jax.parallel.mesh import make_mesh
from tests.reference import to_transformers

SMALL = LlamaConfig(
    vocab_size=125,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    d_ff=64,
    head_size=8,
    max_length=128,
    init_scale=0.3,
)
F32 = Execution(dtype="float32")
LARGE = dataclasses.replace(SMALL, d_model=48, n_layers=3, n_kv_heads=2, head_size=12)
# above 128 ids the padded vocabulary differs too
LARGER_VOCABULARY = dataclasses.replace(SMALL, vocab_size=131)
LENGTHS = (1, 60, 9, 50, 2)
NEW = 16


@functools.cache
def models(antiexpert):
    configs = (LARGE, SMALL, antiexpert)
    return [
        (Llama(config, F32), init_params(config, jax.random.key(i)))
        for i, config in enumerate(configs)
    ]


def prompts():
    rng = np.random.default_rng(3)
    return [rng.integers(0, SMALL.vocab_size, length).tolist() for length in LENGTHS]


@functools.cache
def reference(alpha, antiexpert):
    large, expert, anti = (
        to_transformers(model.config, params) for model, params in models(antiexpert)
    )

    def last(model, ids):
        return model(torch.tensor([ids])).logits[0, -1, : SMALL.vocab_size]

    answers = []
    with torch.no_grad():
        for prompt in prompts():
            ids = list(prompt)
            for _ in range(NEW):
                logits = last(large, ids) + alpha * (last(expert, ids) - last(anti, ids))
                ids.append(int(logits.argmax()))
            answers.append(ids[len(prompt) :])
    return answers


def decode(alpha, antiexpert, **options):
    engine = Engine(models(antiexpert), ProxyTuning(alpha), eos_ids=(10_000,), **options)
    return [answer.tokens for answer in sorted(engine.generate(prompts(), NEW))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "antiexpert", "apart"),
    [(1.0, SMALL, True), (0.6, LARGER_VOCABULARY, True), (1.0, SMALL, False)],
    ids=["alpha 1", "alpha 0.6, larger vocabulary", "expert and anti-expert as one"],
)
def test_tokens_are_those_of_three_models_added_up(alpha, antiexpert, apart):
    assert decode(alpha, antiexpert, slots=2, apart=apart) == reference(alpha, antiexpert)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
def test_a_mesh_changes_no_answer(apart):
    options = dict(slots=4, mesh=make_mesh("fsdp:4,tensor:2"), apart=apart)
    assert decode(0.6, SMALL, **options) == reference(0.6, SMALL)


def test_models_of_one_size_are_decoded_as_one_where_a_loop_runs_over_layers():
    def groups(antiexpert, apart, **options):
        options = {"draft_tokens": 0, "apart": apart, **options}
        engine = Engine(models(antiexpert), ProxyTuning(), eos_ids=(0,), **options)
        return [count for _, count in engine._plan.groups], engine._params

    counts, params = groups(SMALL, apart=False)
    assert counts == [1, 2]
    assert params[1]["layers"]["mlp"]["gate"].values.shape[:2] == (SMALL.n_layers, 2)
    # what drafts is decoded alone
    assert groups(SMALL, apart=False, draft_tokens=2)[0] == [1, 1, 1]
    draft = models(SMALL)[2]
    assert groups(SMALL, apart=False, draft=draft, draft_tokens=2)[0] == [1, 2, 1]
    assert groups(SMALL, apart=True)[0] == groups(LARGER_VOCABULARY, apart=False)[0] == [1, 1, 1]


def test_alpha_matters():
    large = Engine(models(SMALL)[:1], eos_ids=(10_000,), slots=2)
    alone = [answer.tokens for answer in sorted(large.generate(prompts(), NEW))]
    assert decode(0.0, SMALL, slots=2) == alone
    assert decode(1.0, SMALL, slots=2) != alone


def test_every_alpha_runs_in_one_program_on_the_same_weights():
    engine = Engine(models(SMALL), ProxyTuning(0.6), eos_ids=(10_000,), slots=2)
    other = engine.with_combine(ProxyTuning(1.5))
    assert [answer.tokens for answer in sorted(engine.generate(prompts(), NEW))] == decode(
        0.6, SMALL, slots=2
    )
    programs = advance._cache_size(), fill._cache_size()
    assert [answer.tokens for answer in sorted(other.generate(prompts(), NEW))] == decode(
        1.5, SMALL, slots=2
    )
    assert (advance._cache_size(), fill._cache_size()) == programs
    assert decode(0.6, SMALL, slots=2) != decode(1.5, SMALL, slots=2)
    assert all(map(operator.is_, *map(jax.tree.leaves, (engine._params, other._params))))
    with pytest.raises(ValueError, match="FirstModel in place of ProxyTuning"):
        engine.with_combine(FirstModel())


@pytest.mark.parametrize("alpha", [math.nan, -math.inf])
def test_an_alpha_that_is_no_number_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha}: expected a number"):
        ProxyTuning(alpha)


def test_ids_that_one_model_lacks_get_no_probability():
    large = jnp.zeros((1, 128)).at[:, 100:].set(-1e30)
    expert = jnp.zeros((1, 256)).at[:, 90:].set(-1e30)
    antiexpert = jnp.zeros((1, 128)).at[:, 80:].set(-1e30)
    combined = ProxyTuning(2.0)([large, expert, antiexpert], 80)
    assert combined.shape == (1, 128)
    assert (combined[:, :80] == 0).all() and (combined[:, 80:] == -1e30).all()


def test_a_prompt_id_that_one_model_lacks_is_refused():
    engine = Engine(models(LARGER_VOCABULARY), ProxyTuning(), eos_ids=(0,))
    with pytest.raises(ValueError, match=r"id 128.*125 ids that all models have"):
        engine.generate([[1, 128]], 4)


def test_proxy_tuning_takes_three_models():
    with pytest.raises(ValueError, match="ProxyTuning takes 3 models, 2 were given"):
        Engine(models(SMALL)[:2], ProxyTuning(), eos_ids=(0,))
