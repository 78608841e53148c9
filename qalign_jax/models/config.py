"""What a LLaMA checkpoint is (`LlamaConfig`), apart from how it is computed (`Execution`)."""

import dataclasses

import jax

# The vocabulary's rows are padded to a multiple of this, so that one checkpoint fits every mesh.
VOCAB_MULTIPLE = 128

# What the backward pass finds saved, by name; everything else is computed again. "qkvo" are
# queries, keys, values, what attention makes of them, and its output projection.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "qkvo": jax.checkpoint_policies.save_only_these_names("qkvo"),
    "qkvo_mlp": jax.checkpoint_policies.save_only_these_names("qkvo", "mlp"),
    "none": None,
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length of pretraining.

    `kind` is "linear" (positions divided by `factor`) or "llama3" (low frequencies divided by
    `factor`, high ones kept, a ramp between them; Llama 3.1 model code).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The architecture: everything that a checkpoint's weights depend on."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    head_size: int
    max_length: int = 4096
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    sliding_window: int = 0  # tokens back, itself included; 0 sees all
    tied: bool = False  # the head is the embedding
    init_scale: float = 0.02

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def num_parameters(self) -> int:
        """Parameters of the model as published, padding of the vocabulary left out."""
        attention = self.d_model * self.head_size * 2 * (self.n_heads + self.n_kv_heads)
        layer = attention + 3 * self.d_model * self.d_ff + 2 * self.d_model
        tables = self.vocab_size * self.d_model * (1 if self.tied else 2)
        return self.n_layers * layer + tables + self.d_model


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed; the same weights serve all of it."""

    dtype: str = "bfloat16"  # of activations and products; parameters in training stay float32
    remat: str = "full"  # a key of REMAT_POLICIES
    attention: str = "auto"  # of packed rows: plain, splash, or what suits the device
    scan_layers: bool = True  # False unrolls: XLA on CPU runs a loop's body on one core
