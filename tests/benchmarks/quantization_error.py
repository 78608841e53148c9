"""What int8 changes in the logits of a real pretrained model, of 260 k parameters.

    python -m tests.benchmarks.quantization_error DATA

DATA is the folder of the tests' real data (tests/README.md). The model writes texts of its own by
sampling; every setting then reads the same texts, in float32 but for the row of bfloat16, and is
compared with float32. The head of the model is tied: it is untied here, so that head and embedding
can each be int8 alone.
"""

import dataclasses
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from qalign_jax.checkpoints.model import load_model
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.models.cache import empty_cache
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import hold
from qalign_jax.models.quantization import quantized_matrix
from tests.pretrained import write_pretrained

TEXTS, LENGTH = 32, 256
SETTINGS = {  # name: what is int8
    "bfloat16, nothing int8": (),
    "weights": ("weights",),
    "cache": ("cache",),
    "weights, cache": ("weights", "cache"),
    "weights, head": ("weights", "head"),
    "weights, embedding": ("weights", "embedding"),
    "weights, cache, head, embedding": ("weights", "cache", "head", "embedding"),
}


def load(data: pathlib.Path):
    """The module and the parameters, the head untied."""
    with tempfile.TemporaryDirectory() as folder:
        write_pretrained(data / "tinyllama_260k", pathlib.Path(folder))
        model = load_model(folder, dtype="float32")
    module = model.module.clone(config=dataclasses.replace(model.config, tied=False))
    return module, {**model.params, "head": {"kernel": model.params["embed"]["embedding"].T}}


def rounded(table: jax.Array) -> jax.Array:
    """A table as int8 with a scale a column has it."""
    held = quantized_matrix(table)
    assert held.scale is not None
    return held.values * held.scale


def logits_of(module: Llama, params, tokens: jax.Array, int8) -> np.ndarray:
    """The logits [B, T, V] after each token, through a cache as decoding has it."""
    config, dtype = module.config, module.execution.dtype
    params = hold(config, params, dtype, apart=False, int8="weights" in int8)
    if "head" in int8:
        params = {**params, "head": {"kernel": rounded(params["head"]["kernel"])}}
    if "embedding" in int8:  # a scale a token
        params = {**params, "embed": {"embedding": rounded(params["embed"]["embedding"].T).T}}
    batch, length = tokens.shape
    cache = empty_cache(config, dtype, batch, length, apart=False, int8="cache" in int8)
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    logits, _ = jax.jit(module.apply, static_argnames="method")(
        {"params": params}, tokens, positions, cache, method="decode"
    )
    return np.asarray(logits, np.float64)[..., : config.vocab_size]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def main() -> None:
    module, params = load(pathlib.Path(sys.argv[1]))
    engine = Engine([(module, params)], eos_ids=(10_000,), sampling=Sampling(1.0), slots=TEXTS)
    answers = sorted(engine.generate([[1]] * TEXTS, LENGTH))
    tokens = np.array([[1, *answer.tokens] for answer in answers])
    read, following = jnp.asarray(tokens[:, :-1]), tokens[:, 1:, None]
    exact = logits_of(module, params, read, ())
    expected, best = log_softmax(exact), exact.argmax(axis=-1)
    nats = -np.take_along_axis(expected, following, axis=-1).mean()
    print(f"{best.size:,} tokens, {nats:.4f} nats each; the logits' deviation {exact.std():.2f}\n")
    print("| int8 | largest error | mean error | mean KL, nats | most | same best, % | nats |")
    print("|---|---|---|---|---|---|---|")
    for name, int8 in SETTINGS.items():
        own = module
        if not int8:
            own = module.clone(execution=dataclasses.replace(module.execution, dtype="bfloat16"))
        found = logits_of(own, params, read, int8)
        log_p = log_softmax(found)
        error, kl = np.abs(found - exact), (np.exp(expected) * (expected - log_p)).sum(axis=-1)
        same = 100 * (found.argmax(axis=-1) == best).mean()
        worse = -np.take_along_axis(log_p, following, axis=-1).mean() - nats
        print(
            f"| {name} | {error.max():.3f} | {error.mean():.4f} | {kl.mean():.1e} | {kl.max():.3f} "
            f"| {same:.2f} | {worse:+.5f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
