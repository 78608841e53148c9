"""An adapter as an expert, beside weights that the anti-expert reads too: the tokens of the merged
expert."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qalign_jax.ahead.jobs import DecodingJob
from qalign_jax.decoding.combine import FirstModel, ProxyTuning
from qalign_jax.decoding.draft_length import round_seconds
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.likelihood import Continuation
from qalign_jax.decoding.plan import (
    EXPERT,
    LOOKUP,
    abstract_params,
    make_plan,
    shares_weights,
    with_room,
)
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.models.adapter import MATRICES, Adapted, Adapter, attach, pair_shapes
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import hold, init_params
from qalign_jax.models.quantization import Matrix
from qalign_jax.parallel.mesh import make_mesh

SMALL = LlamaConfig(
    vocab_size=97, d_model=48, n_layers=2, n_heads=4, n_kv_heads=4, d_ff=96, head_size=12,
    max_length=64, init_scale=0.3,
)  # fmt: skip
LARGE = dataclasses.replace(SMALL, d_model=64, d_ff=128, head_size=16)
F32 = Execution(dtype="float32")
ADAPTER = Adapter(4, alpha=8.0)
BASE, EXPERT_MODULE = Llama(SMALL, F32), Llama(SMALL, F32, adapter=ADAPTER)
EOS, NEW = 5, 14
GREEDY, SAMPLED = Sampling(), Sampling(0.9, 0.9, seed=3)
# with a common beginning, which is read on its own
PROMPTS = [
    [*range(20, 52), *np.random.default_rng(i).integers(0, 97, length).tolist()]
    for i, length in enumerate((9, 3, 18, 1, 16, 12))
]


@functools.cache
def held(seed, config, int8):
    """The layers stacked, as `load_model` leaves them."""
    params = init_params(config, jax.random.key(seed))
    return jax.block_until_ready(hold(config, params, "float32", apart=False, int8=int8))


@functools.cache
def pairs(seed=5):
    """Random ones: B is not the 0 that it begins with."""
    key = jax.random.key(seed)
    made = pair_shapes(ADAPTER, held(1, SMALL, False))
    return jax.tree.map(lambda leaf: 0.1 * jax.random.normal(key, leaf.shape), made)


def is_matrix(node):
    return isinstance(node, Matrix | Adapted)


def wide(params):
    """Held parameters as plain matrices in f32, adapters merged in numpy."""

    def one(node):
        if isinstance(node, Adapted):
            more = ADAPTER.alpha / ADAPTER.rank * np.asarray(node.a) @ np.asarray(node.b)
            return Matrix(jnp.asarray(one(node.weight).values + more), None)
        if not isinstance(node, Matrix):
            return node
        scale = 1 if node.scale is None else np.asarray(node.scale)[:, None]
        return Matrix(jnp.asarray(np.asarray(node.values, np.float32) * scale), None)

    return jax.tree.map(one, params, is_leaf=is_matrix)


def shared(int8=False):
    """Large model, expert and anti-expert."""
    large, base = held(0, LARGE, int8), held(1, SMALL, int8)
    adapted = attach(ADAPTER, base, pairs())
    return [(Llama(LARGE, F32), large), (EXPERT_MODULE, adapted), (BASE, base)]


@functools.cache
def merged(int8=False):
    return [(module.clone(adapter=None), wide(params)) for module, params in shared(int8)]


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def engine(models, mesh="", **options):
    combine = FirstModel() if len(models) == 1 else ProxyTuning(0.8)
    on = make_mesh(mesh) if mesh else None
    return Engine(models, combine, eos_ids=(EOS,), slots=4, mesh=on, **options)


def decode(models, **options):
    return sorted(engine(models, **options).generate(PROMPTS, NEW), key=lambda one: one.number)


def tokens(answers):
    return [answer.tokens for answer in answers]


@functools.cache
def reference(models=3, sampling=GREEDY, int8=False):
    """Tokens of models whose adapters are merged."""
    found = merged(int8)[:3] if models == 3 else merged(int8)[1:2]
    return tokens(decode(found, sampling=sampling, draft_tokens=0))


def test_the_adapter_and_the_sampling_change_tokens():
    large, _, base = shared()
    unadapted = [large, base, base]
    assert tokens(decode(unadapted, draft_tokens=0)) != reference()
    assert reference(sampling=SAMPLED) != reference() != reference(int8=True)


@pytest.mark.parametrize(
    ("sampling", "mesh", "apart", "draft"),
    [
        (GREEDY, "", True, 0),
        (SAMPLED, "", False, 0),
        (SAMPLED, "", True, 3),
        slow(GREEDY, "", False, 3),
        slow(SAMPLED, "", False, LOOKUP),
        slow(SAMPLED, "data:2,tensor:4", False, 0),
        slow(GREEDY, "data:2,tensor:4", False, 3),
        slow(GREEDY, "fsdp:4,tensor:2", True, 0),
    ],
)
def test_tokens_are_those_of_the_merged_expert(sampling, mesh, apart, draft):
    options = {"draft": LOOKUP, "draft_tokens": 3} if draft == LOOKUP else {"draft_tokens": draft}
    answers = decode(shared(), mesh=mesh, apart=apart, sampling=sampling, **options)
    assert tokens(answers) == reference(sampling=sampling)


@pytest.mark.parametrize(
    ("mesh", "apart", "drafts"),
    [("", True, 0), slow("", True, 3), slow("data:2,tensor:4", False, 0)],
)
def test_with_an_int8_base_they_are_those_of_its_dequantised_weights(mesh, apart, drafts):
    options = dict(mesh=mesh, apart=apart, draft_tokens=drafts, weights_dtype="int8")
    assert tokens(decode(shared(int8=True), **options)) == reference(int8=True)


@pytest.mark.slow
def test_a_wide_base_becomes_int8_and_is_still_shared():
    answers = decode(shared(), weights_dtype="int8", draft_tokens=0)
    assert tokens(answers) == reference(int8=True)


@pytest.mark.slow
def test_another_model_may_draft():
    models = shared()
    answers = decode(models, draft=models[2], draft_tokens=2, apart=False)
    assert tokens(answers) == reference()


@pytest.mark.parametrize("apart", [True, False])
def test_one_model_with_an_adapter_decodes_as_the_merged_one(apart):
    assert tokens(decode(shared()[1:2], apart=apart)) == reference(1)


@pytest.mark.slow
def test_adapters_of_other_weights_are_decoded_as_models_of_their_own():
    other = attach(ADAPTER, held(2, SMALL, False), pairs(6))
    models = [*shared()[:2], (EXPERT_MODULE, other)]
    expected = decode([*merged()[:2], (BASE, wide(other))], draft_tokens=0)
    assert not shares_weights(models)
    for apart in (True, False):
        assert tokens(decode(models, apart=apart, draft_tokens=0)) == tokens(expected)


@pytest.mark.slow
def test_traces_are_those_of_the_merged_expert():
    found, expected = (decode(each, trace=True, draft_tokens=0) for each in (shared(), merged()))
    for own, other in zip(found, expected, strict=True):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-4), own.traced, other.traced
        )


def test_likelihoods_are_those_of_the_merged_expert():
    texts = [Continuation([*prompt, 7, 8], len(prompt)) for prompt in PROMPTS]
    expected = dict(engine(merged()).log_likelihoods(texts))
    for drafts in (0, 2):  # with drafts the pair is in two groups
        found = dict(engine(shared(), draft_tokens=drafts).log_likelihoods(texts))
        assert found == pytest.approx(expected, abs=1e-4)


def nbytes(*trees):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))


def plan_of(models, draft="", apart=False, mesh=None, **options):
    modules = tuple(module for module, _ in models)
    made = make_plan(
        modules, Sampling(), mesh, 4, apart=apart, draft=draft, shared=shares_weights(models),
        **options,
    )  # fmt: skip
    return with_room(made, 40)


def test_the_expert_and_the_antiexpert_share_their_weights_where_the_arrays_are_the_same():
    large, expert, antiexpert = shared()
    assert shares_weights([large, expert, antiexpert])
    copied = jax.tree.map(jnp.copy, antiexpert[1])
    assert not shares_weights([large, expert, (BASE, copied)])
    assert not shares_weights([large, (BASE, antiexpert[1]), antiexpert])
    other = Llama(SMALL, dataclasses.replace(F32, dtype="bfloat16"))
    assert not shares_weights([large, expert, (other, antiexpert[1])])
    assert not shares_weights([expert])


def drafting(draft):
    return {"draft_tokens": 3 if draft else 0, "draft": LOOKUP if draft == LOOKUP else None}


@pytest.mark.parametrize("draft", ["", LOOKUP, EXPERT])
def test_shared_weights_are_held_once_and_not_copied(draft):
    models = shared()
    made = engine(models, apart=False, **drafting(draft))
    found, given = made._params, [params for _, params in models]
    for own, other in zip(found[:2], given[:2], strict=True):
        assert list(map(id, jax.tree.leaves(own))) == list(map(id, jax.tree.leaves(other)))
    assert found[2:] == (((),) if draft == EXPERT else ())
    assert made.with_options(slots=8)._plan.groups == made._plan.groups


@pytest.mark.parametrize("draft", ["", EXPERT])
@pytest.mark.parametrize("mesh", ["", "data:2,tensor:4"])
def test_shared_weights_take_the_bytes_of_one_model_and_the_adapter(mesh, draft):
    models = shared()
    found = engine(models, mesh, apart=True, **drafting(draft))._params
    large, _, base = (params for _, params in models)
    scales = SMALL.n_layers * len(MATRICES) * 4
    assert nbytes(found) == nbytes(large, base, pairs()) + scales
    if mesh:
        planned = abstract_params(plan_of(models, draft, True, make_mesh(mesh)))
        assert jax.tree.structure(planned) == jax.tree.structure(found)
        for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(planned), strict=True):
            assert (own.shape, own.dtype) == (other.shape, other.dtype)
            assert own.sharding.is_equivalent_to(other.sharding, own.ndim)


def test_a_job_counts_shared_weights_once():
    modules = tuple(module for module, _ in shared())
    apart = DecodingJob(modules, "tensor:1", 4, 8, 8)
    once = dataclasses.replace(apart, shared=True)
    large, expert, antiexpert = (params for _, params in shared())
    assert once.least_bytes == nbytes(large, expert)
    assert apart.least_bytes == nbytes(large, expert, antiexpert)


def test_a_step_is_modelled_as_reading_shared_weights_once():
    models = shared()
    own = plan_of(models)
    separate = dataclasses.replace(own, shared=False)
    drafting = dataclasses.replace(own, draft=EXPERT)
    assert round_seconds(own, 0, 32) < round_seconds(separate, 0, 32)
    assert round_seconds(drafting, 0, 32) == pytest.approx(round_seconds(separate, 0, 32))
