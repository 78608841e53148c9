"""The engine with int8 weights and caches: the tokens of the same weights dequantised."""

import functools

import jax
import numpy as np
import pytest

from qalign_jax.decoding.combine import FirstModel, ProxyTuning
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.likelihood import Continuation
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import hold, init_params
from qalign_jax.models.quantization import INPUTS
from qalign_jax.parallel.mesh import make_mesh

CONFIG = LlamaConfig(
    vocab_size=97, d_model=48, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=96, head_size=12,
    max_length=64, init_scale=0.3,
)  # fmt: skip
MODEL = Llama(CONFIG, Execution(dtype="float32"))
COMBINE = {1: FirstModel(), 3: ProxyTuning(0.5)}
PROMPTS = [
    np.random.default_rng(i).integers(0, 97, length).tolist() for i, length in enumerate((9, 3, 20))
]
NEW = 12


@functools.cache
def params_of(seed):
    return init_params(CONFIG, jax.random.key(seed))


def dequantised(params):
    """The parameters with every projection as int8 of an output's own scale has it, in numpy."""

    def one(path, leaf):
        name, leaf = path[-1].key, np.asarray(leaf)
        if name not in INPUTS:
            return leaf
        inputs = tuple(range(1, 1 + INPUTS[name]))
        scale = np.abs(leaf).max(axis=inputs, keepdims=True) / np.float32(127)
        return np.rint(leaf / scale) * scale

    return jax.tree_util.tree_map_with_path(one, params)


def decode(params, mesh=None, **options):
    engine = Engine(
        [(MODEL, each) for each in params], COMBINE[len(params)], eos_ids=(10_000,), slots=8,
        mesh=make_mesh(mesh) if mesh else None, **options,
    )  # fmt: skip
    return [answer.tokens for answer in sorted(engine.generate(PROMPTS, NEW))]


@functools.cache
def reference(models):
    return decode([dequantised(params_of(seed)) for seed in range(models)])


@functools.cache
def on_one_device(models, **options):
    return decode([params_of(seed) for seed in range(models)], **options)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("models", "apart", "mesh"),
    [
        (1, True, ""),
        (1, False, ""),
        slow(3, True, ""),
        slow(3, False, ""),
        slow(1, True, "fsdp:4,tensor:2"),
        slow(1, False, "fsdp:4,tensor:2"),
        slow(3, True, "fsdp:4,tensor:2"),
        slow(3, False, "fsdp:4,tensor:2"),
    ],
)
def test_tokens_are_those_of_the_dequantised_weights(models, apart, mesh):
    params = [params_of(seed) for seed in range(models)]
    assert decode(params, mesh, apart=apart, weights_dtype="int8") == reference(models)
    assert reference(models) != on_one_device(models)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["", "fsdp:4,tensor:2"])
@pytest.mark.parametrize("models", [1, 3])
def test_an_int8_cache_gives_the_same_tokens_everywhere(models, mesh):
    params = [params_of(seed) for seed in range(models)]
    found = [decode(params, mesh, apart=apart, cache_dtype="int8") for apart in (True, False)]
    assert found[0] == found[1] == on_one_device(models, cache_dtype="int8")


def test_with_an_int8_cache_an_answer_does_not_depend_on_the_other_prompts():
    prompts = [[*range(40), 50 + number] for number in range(16)]
    made = Engine(
        [(MODEL, params_of(0))], eos_ids=(10_000,), cache_dtype="int8", sampling=Sampling(1.0)
    )
    together = {answer.number: answer.tokens for answer in made.generate(prompts, 16)}
    alone = [made.generate([prompt], 16, [number]) for number, prompt in enumerate(prompts)]
    assert together == {answer.number: answer.tokens for (answer,) in alone}


def test_weights_that_are_int8_already_are_taken_as_they_are():
    held = hold(CONFIG, params_of(0), "float32", apart=False, int8=True)
    for apart in (True, False):
        assert decode([held], apart=apart, weights_dtype="int8") == reference(1)


def test_likelihoods_are_those_of_the_dequantised_weights():
    given = [Continuation([*prompt, 5, 6], len(prompt)) for prompt in PROMPTS]
    found = [
        dict(
            Engine([(MODEL, params)], eos_ids=(10_000,), weights_dtype=dtype).log_likelihoods(given)
        )
        for params, dtype in ((params_of(0), "int8"), (dequantised(params_of(0)), ""))
    ]
    np.testing.assert_allclose(
        [found[0][i] for i in range(3)], [found[1][i] for i in range(3)], atol=1e-4
    )


def test_dtypes_that_there_are_not_are_refused():
    for key in ("weights_dtype", "cache_dtype"):
        with pytest.raises(ValueError, match=f"{key}='int4': expected int8, or nothing"):
            Engine([(MODEL, params_of(0))], eos_ids=(0,), **{key: "int4"})
