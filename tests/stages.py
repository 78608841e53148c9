"""Stages' folders as runs leave them, without the training."""

import functools
import os

import jax
import numpy as np

from qalign_jax.checkpoints.card import Card, describe_model, fingerprint
from qalign_jax.checkpoints.model import Model, save_model
from qalign_jax.checkpoints.part import Part
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.checkpoints.state import Checkpoints
from qalign_jax.convert import convert
from qalign_jax.models.config import Execution
from qalign_jax.models.params import random_params
from qalign_jax.models.presets import preset
from qalign_jax.models.trainable import Trainable, trained_shapes
from qalign_jax.parallel.mesh import make_mesh

CONFIG, _ = preset("tiny", vocab_size=421, n_layers=4, n_heads=4, n_kv_heads=2, init_scale=0.1)
EXECUTION = Execution(dtype="float32", remat="none", attention="plain")


def write_whole(folder, tokenizer, seed=0):
    """A stage that trained all weights."""
    params = random_params(CONFIG, make_mesh("single"), seed)
    save_model(folder, Model(CONFIG, EXECUTION, params, tokenizer, "short"))
    write_record(folder, Record({"init": "random", "data": {}}, {"seed": seed}))


def write_part(folder, base, trainable: Trainable, tokenizer, seed=1):
    """A stage that trained a part beside the stage `base`, of which no value is 0."""
    rng = np.random.default_rng(seed)
    shapes = trained_shapes(CONFIG, trainable)[0]
    trained = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4") * 0.1, shapes)
    name = os.path.relpath(base, folder)
    card = Card(CONFIG, EXECUTION, "short", Part(trainable, name, fingerprint(base)))
    describe_model(folder, card, tokenizer)
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(7, {"params": jax.tree.map(jax.numpy.asarray, trained)}, final=True)
    checkpoints.close()
    settings = {"init": os.path.basename(base), "data": {"pairs": {"name": "jsonl"}}, "lr": 1e-4}
    write_record(folder, Record(settings, {"seed": seed}))
    return trained


def write_stages(folder, parts, tokenizer):
    """A stage `base`, it as a Hugging Face directory `hub`, and stages that trained parts.

    Args:
      parts: name -> (the stage that it belongs to, what it trained).
    """
    write_whole(folder / "base", tokenizer)
    for name, (base, trainable) in parts.items():
        write_part(folder / name, folder / base, trainable, tokenizer)
    convert(folder / "base", folder / "hub")


def logits(model: Model, tokens):
    """The logits of a loaded model, whether its weights are those of training or of decoding."""
    index = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    found = _apply(model.module, model.params, tokens, index, np.ones_like(tokens))
    return np.asarray(found)[..., : model.config.vocab_size]


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, *batch):
    return module.apply({"params": params}, *batch, method="logits")
