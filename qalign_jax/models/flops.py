"""FLOPs of matrix products, counted from the architecture and from what is trained."""

import math

import jax

from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.trainable import WHOLE, Trainable, trained_shapes


def flops_per_token(
    config: LlamaConfig, length: int, training: bool = True, trainable: Trainable = WHOLE
) -> float:
    """Matrix-product FLOPs a token at this row length; causal attention counts half.

    The lookup of the embedding is none. Training is three times the forward pass
    (recomputation is not counted, as MFU is defined in PaLM, appendix B); of frozen weights twice,
    without their own gradients, and once in front of the first layer that is trained.

    Args:
      trainable: what is trained; of decoding, its adapter is computed beside the matrices.
    """
    head = config.vocab_size * config.d_model
    tables = head * (1 if config.tied else 2)
    attention = config.n_heads * config.head_size * length  # of a layer
    layers = 2 * (config.num_parameters - tables + attention * config.n_layers)
    trained = 2 * num_trained(config, trainable)
    beside = trained if trainable.adapter else 0
    forward = layers + 2 * head + beside
    if not training:
        return forward
    if trainable.is_whole:
        return 3 * forward
    reached = layers * (1 - trainable.first_layer() / config.n_layers) + 2 * head + beside
    reached += 2 * attention * (config.n_layers - trainable.first_layer())  # two for each product
    return forward + reached + trained


def num_trained(config: LlamaConfig, trainable: Trainable) -> int:
    """How many parameters are trained; the padding of the vocabulary left out."""
    if trainable.is_whole:
        return config.num_parameters
    shapes = jax.tree.leaves(trained_shapes(config, trainable)[0])
    return sum(math.prod(leaf.shape) for leaf in shapes)


def recomputed_flops_per_token(
    config: LlamaConfig, remat: str, length: int, trainable: Trainable = WHOLE
) -> float:
    """FLOPs a token that the backward pass computes again under a remat policy."""
    if remat == "none":
        return 0.0
    again = 0
    if remat in ("full", "qkvo"):
        again += 4 * config.d_model * config.d_ff  # gate and up
    if remat == "full":
        heads = 2 * (config.n_heads + config.n_kv_heads)  # the four projections
        again += 2 * config.d_model * config.head_size * heads
        again += 2 * config.n_heads * config.head_size * length  # causal attention
    return (config.n_layers - trainable.first_layer()) * again
