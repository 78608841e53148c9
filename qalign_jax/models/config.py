"""What a LLaMA checkpoint is (`LlamaConfig`), apart from how it is computed (`Execution`)."""

import dataclasses

import jax

from qalign_jax import schema

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
# How the rows of a packed batch attend (models/attention.py).
ATTENTION = ("auto", "plain", "blocked", "splash")

# What a field may hold. No model comes near the limits: they keep a damaged file from being
# taken for a model that no memory holds.
_SIZE = schema.whole(1, 10**7)
_SCALING = {
    "kind": schema.one_of("linear", "llama3"),
    "factor": schema.number(1e-3, 1e6),
    "low_freq_factor": schema.number(1e-3, 1e6),
    "high_freq_factor": schema.number(1e-3, 1e6),
    "original_max_length": _SIZE,
}
_CONFIG = {
    **dict.fromkeys(("vocab_size", "d_model", "d_ff", "max_length"), _SIZE),
    "n_layers": schema.whole(1, 1000),
    **dict.fromkeys(("n_heads", "n_kv_heads", "head_size"), schema.whole(1, 10**5)),
    "rope_theta": schema.number(1, 1e12),
    "norm_eps": schema.number(1e-30, 1),
    "sliding_window": schema.whole(0, 10**7),
    "tied": schema.FLAG,
    "init_scale": schema.number(0, 1e3),
}
_EXECUTION = {
    "dtype": schema.one_of("float32", "bfloat16", "float16"),
    "remat": schema.one_of(*REMAT_POLICIES),
    "attention": schema.one_of(*ATTENTION),
    "scan_layers": schema.FLAG,
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

    def __post_init__(self):
        schema.check(vars(self), _SCALING, "the model's rope_scaling")
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"the model's rope_scaling: low_freq_factor is {self.low_freq_factor}; expected "
                f"less than high_freq_factor, {self.high_freq_factor}"
            )


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The architecture: everything that a checkpoint's weights depend on.

    Raises:
      ValueError: a value of another type, or out of its range.
    """

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

    def __post_init__(self):
        schema.check(vars(self), _CONFIG, "the model")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"the model: n_kv_heads is {self.n_kv_heads}; expected a divisor of its "
                f"{self.n_heads} heads"
            )
        if self.head_size % 2:
            raise ValueError(
                f"the model: head_size is {self.head_size}; rotary positions need an even one"
            )

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
    """How a model is computed; the same weights serve all of it.

    Raises:
      ValueError: a value of another type, or none of the choices.
    """

    dtype: str = "bfloat16"  # of activations and products; parameters in training stay float32
    remat: str = "full"  # a key of REMAT_POLICIES
    attention: str = "auto"  # of packed rows: one of ATTENTION
    scan_layers: bool = True  # False unrolls: XLA on CPU runs a loop's body on one core

    def __post_init__(self):
        schema.check(vars(self), _EXECUTION, "the model")
