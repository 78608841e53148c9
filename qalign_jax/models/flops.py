"""FLOPs of matrix products, counted from the architecture."""

from qalign_jax.models.config import LlamaConfig


def flops_per_token(config: LlamaConfig, length: int, training: bool = True) -> float:
    """Matrix-product FLOPs a token at this row length; causal attention counts half.

    The lookup of the embedding is none. Training is three times the forward pass
    (recomputation is not counted, as MFU is defined in PaLM, appendix B).
    """
    tables = config.vocab_size * config.d_model
    matrices = config.num_parameters - tables * (1 if config.tied else 2) + tables
    attention = config.n_layers * config.n_heads * config.head_size * length
    forward = 2 * matrices + 2 * attention
    return forward * (3 if training else 1)


def recomputed_flops_per_token(config: LlamaConfig, remat: str, length: int) -> float:
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
    return config.n_layers * again
