"""Log-likelihoods of continuations against transformers, one model and three."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

from qalign_jax.decoding.combine import FirstModel, ProxyTuning
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.likelihood import Continuation
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from qalign_jax.parallel.mesh import make_mesh
from tests.reference import to_transformers

SMALL = LlamaConfig(
    vocab_size=125, d_model=32, n_layers=2, n_heads=4, n_kv_heads=4, d_ff=64, head_size=8,
    max_length=700, init_scale=0.3,
)  # fmt: skip
CONFIGS = (dataclasses.replace(SMALL, d_model=48, n_kv_heads=2, head_size=12), SMALL, SMALL)
ALPHA = 0.7


@functools.cache
def models():
    return [
        (Llama(config, Execution(dtype="float32")), init_params(config, jax.random.key(i)))
        for i, config in enumerate(CONFIGS)
    ]


def continuations():
    """Letters after one prompt, labels of several tokens, a row of its own, a bare BOS."""
    rng = np.random.default_rng(0)

    def ids(length):
        return rng.integers(0, SMALL.vocab_size, length).tolist()

    made = []
    for length in (1, 7, 90, 520):
        prompt = ids(length)
        made += [Continuation([*prompt, letter], length) for letter in (3, 5, 3)]
        made += [Continuation([*prompt, *ids(n)], length) for n in (2, 12)]
    return made


@functools.cache
def reference(count):
    references = [to_transformers(model.config, params) for model, params in models()[:count]]
    found = []
    with torch.no_grad():
        for ids, prompt in continuations():
            logits = [model(torch.tensor([ids])).logits[0, :, :125] for model in references]
            mixed = logits[0] + ALPHA * (logits[1] - logits[2]) if count == 3 else logits[0]
            chosen = mixed.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
            found.append(float(chosen[prompt - 1 :].sum()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["", "data:2,tensor:2"])
@pytest.mark.parametrize("combine", [FirstModel(), ProxyTuning(ALPHA)])
def test_log_likelihoods_equal_those_of_transformers(combine, mesh):
    mesh = make_mesh(mesh, jax.devices()[:4]) if mesh else None
    engine = Engine(models()[: combine.models], combine, eos_ids=(1,), mesh=mesh)
    found = dict(engine.log_likelihoods(continuations()))
    assert sorted(found) == list(range(len(continuations())))
    np.testing.assert_allclose(
        [found[i] for i in sorted(found)], reference(combine.models), rtol=0, atol=1e-4
    )


def test_a_continuation_of_nothing_or_of_too_much_is_refused():
    engine = Engine(models()[:1], eos_ids=(1,))
    for bad in (Continuation([1, 2], 2), Continuation([1], 0), Continuation([1] * 702, 3)):
        with pytest.raises(ValueError, match="continuation 1 has"):
            engine.log_likelihoods([Continuation([1, 2], 1), bad])
    assert not list(engine.log_likelihoods([]))
