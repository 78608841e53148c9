"""Tiny models of every family, saved by transformers."""

import shutil

import torch
import transformers

SIZES = dict(
    vocab_size=421, hidden_size=64, intermediate_size=160, num_hidden_layers=3,
    num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=128,
)  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LLAMA, MISTRAL = (
    (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    (transformers.MistralConfig, transformers.MistralForCausalLM),
)
# the settings that distinguish each family, at a tiny size
KINDS = {
    "llama2_7b": (*LLAMA, {}),
    "llama2_70b": (*LLAMA, {"num_key_value_heads": 4}),
    "llama3_8b": (
        *LLAMA, {"num_key_value_heads": 4, "vocab_size": 512, "rope_parameters": LLAMA3_ROPE}
    ),
    "mistral_7b": (*MISTRAL, {"num_key_value_heads": 4, "sliding_window": 5}),
    "codellama_7b": (
        *LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}
    ),
    "linear": (
        *LLAMA,
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    ),
    "tied": (*LLAMA, {"tie_word_embeddings": True}),
    "wide heads": (*LLAMA, {"head_dim": 16}),
    "extra row": (*LLAMA, {"vocab_size": 513}),  # as 32,001: with an added pad token
}  # fmt: skip


def save(kind, path, model_file, dtype=torch.float32, **how):
    """Saves a random model of a kind with a tokenizer; returns it in float32."""
    config_class, model_class, changes = KINDS[kind]
    torch.manual_seed(0)
    config = config_class(**SIZES | changes, initializer_range=0.1, attn_implementation="eager")
    model_class(config).to(dtype).save_pretrained(path, **how)
    shutil.copy(model_file, path / "tokenizer.model")
    return model_class.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
