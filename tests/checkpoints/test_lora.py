"""A PEFT adapter merges into its base as peft itself merges it."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers

from qalign_jax.checkpoints.lora import MergedTensors, is_adapter
from qalign_jax.checkpoints.model import load_model
from qalign_jax.checkpoints.safetensors import TensorFiles

ADAPTERS = {
    "plain": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "rank-stabilised": dict(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True),
    "patterns": dict(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"down_proj": 32},
    ),
    "whole head": dict(
        r=4, lora_alpha=8, target_modules=["o_proj"], modules_to_save=["lm_head"]
    ),
}  # fmt: skip


def save(folder, dtype=torch.float32, **adapter):
    """Saves a base model and an adapter; returns the state dict of peft's merge."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config).to(dtype)
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **adapter))
    with torch.no_grad():
        for _, weight in model.named_parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    model.save_pretrained(folder / "adapter")
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_adapter_is_pefts_merge(name, tmp_path):
    merged = save(tmp_path, **ADAPTERS[name])
    base = TensorFiles(tmp_path / "base")
    tensors = MergedTensors(base, tmp_path / "adapter")
    changed = 0
    for tensor in base.entries:
        found = tensors.read(tensor)
        np.testing.assert_allclose(found, merged[tensor].numpy(), rtol=1e-6, atol=1e-6)
        changed += not np.array_equal(found, base.read(tensor))
    layers = {"plain": 4, "rank-stabilised": 14, "patterns": 4, "whole head": 3}
    assert changed == layers[name]


def test_a_bf16_base_is_rounded_once(tmp_path):
    merged = save(tmp_path, torch.bfloat16, **ADAPTERS["plain"])
    tensors = MergedTensors(TensorFiles(tmp_path / "base"), tmp_path / "adapter")
    for tensor in tensors.entries:
        found = tensors.read(tensor)
        assert found.dtype.name == "bfloat16"
        np.testing.assert_array_equal(found.astype("f4"), merged[tensor].float().numpy())


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_adapter_that_cannot_be_merged_is_refused_by_name(tmp_path):
    save(tmp_path, **ADAPTERS["plain"])
    base, adapter = TensorFiles(tmp_path / "base"), tmp_path / "adapter"
    config = adapter / "adapter_config.json"
    change(config, use_dora=True)
    with pytest.raises(ValueError, match=r"use_dora is True.*merge_and_unload"):
        MergedTensors(base, adapter)
    change(config, use_dora=False, peft_type="IA3")
    with pytest.raises(ValueError, match="peft_type is 'IA3'"):
        MergedTensors(base, adapter)
    config.write_text("{}")
    with pytest.raises(ValueError, match="not a LoRA adapter's configuration"):
        MergedTensors(base, adapter)


def test_an_adapter_of_another_base_is_refused_by_its_layer(tmp_path):
    save(tmp_path, **ADAPTERS["plain"])
    (tmp_path / "other").mkdir()
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"q_proj has the shapes \(4, 32\) and \(32, 4\).*base"):
        MergedTensors(TensorFiles(tmp_path / "other"), tmp_path / "adapter")


def test_an_adapter_named_as_a_model_says_how_to_merge_it(tmp_path):
    save(tmp_path, **ADAPTERS["plain"])
    assert is_adapter(tmp_path / "adapter") and not is_adapter(tmp_path / "base")
    with pytest.raises(ValueError, match=r"convert .*--adapter="):
        load_model(tmp_path / "adapter")


def test_a_pickled_adapter_is_refused(tmp_path):
    save(tmp_path, **ADAPTERS["plain"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ValueError, match="never unpickled"):
        MergedTensors(TensorFiles(tmp_path / "base"), tmp_path / "adapter")


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(.*)*x", ".*.*.*.*x", "(", "a{1,999}{1,999}{1,999}", "a" * 201]
)
def test_a_pattern_that_may_take_for_ever_is_refused(pattern, tmp_path):
    save(tmp_path, **ADAPTERS["plain"])
    change(tmp_path / "adapter" / "adapter_config.json", alpha_pattern={pattern: 4})
    with pytest.raises(ValueError, match=r"adapter_config\.json: alpha_pattern has .*expected"):
        MergedTensors(TensorFiles(tmp_path / "base"), tmp_path / "adapter")


@pytest.mark.parametrize(
    "values",
    [{"lora_alpha": None}, {"lora_alpha": "8"}, {"alpha_pattern": [1]}, {"use_rslora": "yes"}],
)
def test_an_adapters_values_of_another_type_are_named(values, tmp_path):
    save(tmp_path, **ADAPTERS["plain"])
    change(tmp_path / "adapter" / "adapter_config.json", **values)
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {next(iter(values))}.* expected"):
        MergedTensors(TensorFiles(tmp_path / "base"), tmp_path / "adapter")
