"""The reference: the same parameters in a `transformers` model, torch, float32."""

import numpy as np
import torch
import transformers

from qalign_jax.models.config import LlamaConfig


def to_transformers(config: LlamaConfig, params) -> transformers.PreTrainedModel:
    """A transformers model in eval mode and f32 that holds these parameters."""
    settings = dict(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_size,
        max_position_embeddings=config.max_length,
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tied,
        rope_parameters=_rope(config),
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    if config.sliding_window:
        model = transformers.MistralForCausalLM(
            transformers.MistralConfig(**settings, sliding_window=config.sliding_window)
        )
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    state = {name: torch.from_numpy(value) for name, value in _state(config, params).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if config.tied else set())
    return model.float().eval()


def _rope(config):
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    scaling = config.rope_scaling
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_length,
            }
    return rope


def _state(config, params):
    def matrix(kernel, inputs):  # [inputs..., outputs...] -> torch's [outputs, inputs]
        kernel = np.asarray(kernel)
        return np.ascontiguousarray(kernel.reshape(np.prod(kernel.shape[:inputs]), -1).T)

    state = {
        "model.embed_tokens.weight": np.array(params["embed"]["embedding"])[: config.vocab_size],
        "model.norm.weight": np.array(params["norm"]["scale"]),
    }
    if not config.tied:
        state["lm_head.weight"] = matrix(params["head"]["kernel"], 1)[: config.vocab_size]
    names = {
        "self_attn.q_proj": ("attention", "query", 1),
        "self_attn.k_proj": ("attention", "key", 1),
        "self_attn.v_proj": ("attention", "value", 1),
        "self_attn.o_proj": ("attention", "out", 2),
        "mlp.gate_proj": ("mlp", "gate", 1),
        "mlp.up_proj": ("mlp", "up", 1),
        "mlp.down_proj": ("mlp", "down", 1),
    }
    for i in range(config.n_layers):
        for name, (group, leaf, inputs) in names.items():
            kernel = params["layers"][group][leaf][i]
            state[f"model.layers.{i}.{name}.weight"] = matrix(kernel, inputs)
        for name, group in (("input", "attention_norm"), ("post_attention", "mlp_norm")):
            scale = np.array(params["layers"][group]["scale"][i])
            state[f"model.layers.{i}.{name}_layernorm.weight"] = scale
    return state
