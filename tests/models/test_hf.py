"""Hugging Face directories load as the models that they are."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from qalign_jax.models import hf
from qalign_jax.models.llama import Llama
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.checkpoints import load_model

SIZES = dict(
    vocab_size=421, hidden_size=64, intermediate_size=160, num_hidden_layers=3,
    num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=128,
)  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
KINDS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "llama3": (
        transformers.LlamaConfig, transformers.LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}
    ),
    "mistral": (
        transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": 5}
    ),
    "tied": (
        transformers.LlamaConfig, transformers.LlamaForCausalLM, {"tie_word_embeddings": True}
    ),
}  # fmt: skip


def save(kind, path, model_file, **how):
    config_class, model_class, changes = KINDS[kind]
    torch.manual_seed(0)
    config = config_class(**SIZES | changes, initializer_range=0.1, attn_implementation="eager")
    model = model_class(config).eval()
    model.save_pretrained(path, **how)
    shutil.copy(model_file, path / "tokenizer.model")
    return model


def assert_same_logits(path, model, mesh=None):
    loaded = load_model(path, mesh=mesh, dtype="float32")
    tokens = np.random.default_rng(0).integers(0, 421, (2, 20))
    index = np.broadcast_to(np.arange(20), tokens.shape)
    logits = jax.jit(Llama(loaded.config).apply, static_argnames="method")(
        {"params": loaded.params}, tokens, index, np.ones_like(tokens), method="logits"
    )
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(np.asarray(logits)[..., :421], expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_has_its_logits_here(kind, tmp_path, model_file):
    model = save(kind, tmp_path, model_file)
    assert_same_logits(tmp_path, model)


def test_many_files_load_onto_a_mesh_and_each_device_holds_its_part(tmp_path, model_file):
    model = save("llama", tmp_path, model_file, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    mesh = make_mesh("fsdp:2,tensor:4")
    assert_same_logits(tmp_path, model, mesh)
    query = load_model(tmp_path, mesh=mesh).params["layers"]["attention"]["query"]
    assert query.addressable_shards[0].data.shape == (3, 32, 2, 8)


def test_bf16_weights_load_exactly(tmp_path, model_file):
    model = save("llama", tmp_path, model_file).bfloat16()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    expected = model.model.layers[1].mlp.gate_proj.weight.detach().float().numpy().T
    np.testing.assert_array_equal(loaded.params["layers"]["mlp"]["gate"][1], expected)


def test_config_of_transformers_4_with_scaled_rope_is_read(tmp_path):
    raw = {"model_type": "llama", "rope_theta": 500_000.0, "tie_word_embeddings": False,
           "rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw | SIZES))
    config = hf.read_config(tmp_path)
    assert config.rope_theta == 500_000.0 and config.rope_scaling.original_max_length == 32


def test_what_is_wrong_with_a_directory_is_named(tmp_path, model_file):
    save("llama", tmp_path, model_file)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 161}))
    with pytest.raises(ValueError, match=r"down_proj.*\(64, 160\).*\(64, 161\)"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"model\.layers\.3\..* is missing"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="gpt2"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="pytorch_model"):
        load_model(tmp_path)


def test_a_folder_without_a_model_says_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"model\.json"):
        load_model(tmp_path)


def test_padding_of_the_vocabulary_is_zero(tmp_path, model_file):
    save("llama", tmp_path, model_file)
    params = load_model(tmp_path, mesh=make_mesh("fsdp:4,tensor:2")).params
    assert (jnp.abs(params["embed"]["embedding"][421:]).max()) == 0
    assert (jnp.abs(params["head"]["kernel"][:, 421:]).max()) == 0
