"""Hugging Face directories load with the logits of transformers; invalid ones are refused."""

import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from qalign_jax.checkpoints import hf_config
from qalign_jax.checkpoints.model import load_model
from qalign_jax.parallel.mesh import make_mesh
from tests.hugging_face import KINDS, LLAMA3_ROPE, SIZES, save


def assert_same_logits(path, model, mesh=None):
    loaded = load_model(path, mesh=mesh, dtype="float32")
    tokens = np.random.default_rng(0).integers(0, 421, (2, 20))
    index = np.broadcast_to(np.arange(20), tokens.shape)
    logits = jax.jit(loaded.module.apply, static_argnames="method")(
        {"params": loaded.params}, tokens, index, np.ones_like(tokens), method="logits"
    )
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens)).logits.numpy()
    published = np.asarray(logits)[..., : loaded.config.vocab_size]
    np.testing.assert_allclose(published, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_has_its_logits_here(kind, tmp_path, model_file):
    model = save(kind, tmp_path, model_file)
    assert_same_logits(tmp_path, model)


def test_many_files_load_onto_a_mesh_and_each_device_holds_its_part(tmp_path, model_file):
    model = save("llama2_7b", tmp_path, model_file, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    mesh = make_mesh("fsdp:2,tensor:4")
    assert_same_logits(tmp_path, model, mesh)
    query = load_model(tmp_path, mesh=mesh).params["layers"]["attention"]["query"]
    assert query.addressable_shards[0].data.shape == (3, 32, 2, 8)


def test_bf16_weights_load_exactly(tmp_path, model_file):
    model = save("llama2_7b", tmp_path, model_file).bfloat16()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    expected = model.model.layers[1].mlp.gate_proj.weight.detach().float().numpy().T
    np.testing.assert_array_equal(loaded.params["layers"]["mlp"]["gate"][1], expected)


def test_config_of_transformers_4_with_scaled_rope_is_read(tmp_path):
    raw = {"model_type": "llama", "rope_theta": 500_000.0, "tie_word_embeddings": False,
           "rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw | SIZES))
    config = hf_config.read_config(tmp_path)
    assert config.rope_theta == 500_000.0 and config.rope_scaling.original_max_length == 32


@pytest.fixture
def directory(tmp_path, model_file):
    save("llama2_70b", tmp_path, model_file)
    return tmp_path


def change_config(directory, **values):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"intermediate_size": 161}, r"gate_proj.weight has shape \(160, 64\).*\(161, 64\)"),
        ({"vocab_size": 420}, r"embed_tokens.weight has shape \(421, 64\).*\(420, 64\)"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\..* is missing \(and 8 more\)"),
        ({"num_hidden_layers": 2}, r"model\.layers\.2\..* \(and 8 more\) is not one of a 2-layer"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'; expected a whole number"),
        ({"num_attention_heads": None}, "'num_attention_heads' is missing"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected a whole number from 1"),
        ({"num_key_value_heads": 3}, "3, which does not divide the 8 heads"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; expected true or"),
        ({"rms_norm_eps": "abc"}, "rms_norm_eps is 'abc'; expected a number above 0"),
        ({"rope_parameters": 5}, "the rope parameters are 5"),
        ({"prompt_template": 7}, "prompt_template is 7; expected text"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; llama and mistral"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn'"),
        ({"stages": []}, "is a run's workdir"),
    ],
)
def test_what_is_wrong_with_a_config_is_named(values, message, directory):
    change_config(directory, **values)
    with pytest.raises(ValueError, match=message):
        load_model(directory)


def rewrite(directory, change):
    file = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


def test_tensors_that_changed_places_are_named_where_their_shapes_differ(directory):
    q, k = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")

    def shuffle(tensors):
        tensors[q], tensors[k] = tensors[k], tensors[q]

    rewrite(directory, shuffle)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj.*\(32, 64\).*\(64, 64\)"):
        load_model(directory)


def test_a_tensor_too_many_is_refused_but_for_old_buffers(directory):
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(directory, lambda tensors: tensors.update({buffer: np.ones(4, np.float32)}))
    load_model(directory)
    bias = "model.layers.0.self_attn.q_proj.bias"
    rewrite(directory, lambda tensors: tensors.update({bias: np.ones(64, np.float32)}))
    with pytest.raises(ValueError, match=r"q_proj\.bias is not one of"):
        load_model(directory)


def test_a_truncated_file_is_named_with_its_tensor(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: the file ends inside the tensor"):
        load_model(directory)


@pytest.mark.slow
def test_a_pickle_is_refused_with_the_command_that_converts_it(directory):
    state = {
        name: torch.from_numpy(value)
        for name, value in safetensors.numpy.load_file(directory / "model.safetensors").items()
    }
    expected = load_model(directory).params
    torch.save(state, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="never unpickled") as refusal:
        load_model(directory)
    command = str(refusal.value).partition("installed: ")[2]
    subprocess.run(command, shell=True, check=True, capture_output=True)
    found = load_model(f"{directory}-safetensors").params
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_metas_own_format_is_refused(directory):
    (directory / "model.safetensors").rename(directory / "consolidated.00.pth")
    with pytest.raises(ValueError, match="Meta's own format"):
        load_model(directory)


def test_a_folder_without_a_model_says_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"model\.json"):
        load_model(tmp_path)


def test_padding_of_the_vocabulary_is_zero(tmp_path, model_file):
    save("llama2_7b", tmp_path, model_file)
    params = load_model(tmp_path, mesh=make_mesh("fsdp:4,tensor:2")).params
    assert (jnp.abs(params["embed"]["embedding"][421:]).max()) == 0
    assert (jnp.abs(params["head"]["kernel"][:, 421:]).max()) == 0
