"""Adapters of stages leave merged into their base, or alone as PEFT reads them."""

import json

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from qalign_jax.checkpoints import hf_config, lora
from qalign_jax.checkpoints.card import read_card
from qalign_jax.checkpoints.model import load_model, load_trained
from qalign_jax.checkpoints.part import join
from qalign_jax.convert import UNFINISHED, convert
from qalign_jax.faults.checksums import Damaged, check_sums
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.trainable import Trainable
from qalign_jax.parallel.mesh import make_mesh
from tests.stages import CONFIG, logits, write_stages

TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 20))
ADAPTER = Adapter(rank=4, alpha=8, dropout=0.1)
PARTS = {
    "tuned": ("base", Trainable(ADAPTER)),
    "stable": ("base", Trainable(Adapter(3, matrices=("query", "down"), scaling="sqrt_rank"))),
    "int8": ("base", Trainable(ADAPTER, int8=True)),
    "layers": ("base", Trainable.of("layers:1-2/mlp")),
    "layers_int8": ("base", Trainable.of("layers:3", int8=True)),
    "behind": ("int8", Trainable(Adapter(rank=2))),  # a stage with merge=True
}


@pytest.fixture(scope="module")
def stages(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("stages")
    write_stages(folder, PARTS, tokenizer)
    return folder


@pytest.fixture(scope="module")
def exported(stages):
    """What `--peft` wrote of the stage `tuned`."""
    folder = stages / "exported"
    told = convert(stages / "tuned", folder, peft=True, mesh="fsdp:4,tensor:2")
    count = sum(values.size for values in jax.tree.leaves(pairs_of(stages / "tuned")))
    assert told == {
        "source": str(stages / "tuned"), "target": str(folder), "parameters": count,
        "bytes": 4 * count, "dtype": "float32",
    }  # fmt: skip
    return folder


def pairs_of(name):
    return load_trained(name, read_card(name), make_mesh("single"))


def our_logits(path):
    return logits(load_model(path, dtype="float32"), TOKENS)


def their_logits(folder, adapter=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(TOKENS)).logits.numpy()


def test_an_adapter_alone_has_our_logits_in_peft(stages, exported):
    assert {file.name for file in exported.iterdir()} == {
        "README.md", "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    expected = our_logits(stages / "tuned")
    np.testing.assert_allclose(their_logits(stages / "hub", exported), expected, atol=1e-4)
    assert np.abs(our_logits(stages / "base") - expected).max() > 0.1
    config = peft.LoraConfig.from_pretrained(exported)
    assert isinstance(config, peft.LoraConfig)
    assert config.base_model_name_or_path == str(stages / "base") and config.lora_dropout == 0.1


def test_an_adapter_alone_comes_back_bit_for_bit(stages, exported):
    name = join(stages / "hub", exported)
    own = read_card(name).part
    assert own and own.trainable.adapter == ADAPTER
    jax.tree.map(np.testing.assert_array_equal, pairs_of(name), pairs_of(stages / "tuned"))
    file = exported / "adapter_config.json"
    whole = file.read_text()
    file.write_text(whole.replace('"lora_alpha": 8', '"lora_alpha": 9'))
    with pytest.raises(Damaged, match=r"adapter_config\.json is damaged"):
        load_model(name)
    file.write_text(whole)
    assert check_sums(exported)


def test_rank_stabilised_scaling_and_chosen_matrices_leave_too(stages, tmp_path):
    convert(stages / "stable", tmp_path / "adapter", peft=True)
    found = their_logits(stages / "hub", tmp_path / "adapter")
    np.testing.assert_allclose(found, our_logits(stages / "stable"), atol=1e-4)


@pytest.mark.parametrize("name", ["tuned", "layers"])
def test_a_stage_with_a_part_leaves_as_a_whole_model(name, stages, tmp_path):
    told = convert(stages / name, tmp_path / "whole")
    assert (told["parameters"], told["dtype"]) == (CONFIG.num_parameters, "float32")
    expected = our_logits(stages / name)
    np.testing.assert_allclose(their_logits(tmp_path / "whole"), expected, atol=1e-4)
    assert "int8" not in (tmp_path / "whole" / "README.md").read_text()


def test_base_and_adapter_may_be_named_together_or_apart(stages, exported, tmp_path):
    """What has a part of ours becomes a Hugging Face directory, what has none a stage's folder."""
    expected = our_logits(stages / "tuned")
    cases = {
        "ours": (join(stages / "base", stages / "tuned"), None),
        "our_stage": (stages / "base", stages / "tuned"),
        "our_base": (stages / "base", exported),
        "theirs": (join(stages / "hub", exported), None),
        "apart": (stages / "hub", exported),
    }
    for name, (source, adapter) in cases.items():
        convert(source, tmp_path / name, adapter=adapter)
        leaves = name.startswith("our")
        assert hf_config.is_hf_directory(tmp_path / name) == leaves
        np.testing.assert_allclose(our_logits(tmp_path / name), expected, atol=1e-4)
    assert f"`base` at step 0, with the LoRA adapter {exported}" in (
        (tmp_path / "our_base" / "README.md").read_text().replace("\\", "")
    )
    record = json.loads((tmp_path / "theirs" / "stage.json").read_text())["made_from"]
    assert record["source"] == str(stages / "hub") and record["adapter"] == str(exported)


@pytest.mark.parametrize("name", ["int8", "layers_int8", "behind"])
def test_weights_trained_beside_int8_ones_leave_with_a_dtype_and_a_note(name, stages, tmp_path):
    target = tmp_path / "whole"
    alone = " or --peft for the adapter alone" if name != "layers_int8" else "$"
    with pytest.raises(ValueError, match=rf"int8 weights do not leave as if .*bfloat16.*{alone}"):
        convert(stages / name, target)
    assert not target.exists()
    told = convert(stages / name, target, dtype="bfloat16", mesh="single")
    assert told["dtype"] == "bfloat16"
    ours, theirs = (load_model(each, param_dtype="bfloat16") for each in (stages / name, target))
    for key in ("layers", "norm"):  # the tables have padding
        jax.tree.map(np.testing.assert_array_equal, theirs.params[key], ours.params[key])
    card = (target / "README.md").read_text()
    assert "those int8 matrices dequantised, with\nwhat was trained, in bfloat16" in card
    beside = "int8, matrices in float32." if name == "behind" else "base, matrices in int8."
    assert f"Frozen beside it: {beside}" in card


def test_an_adapter_beside_int8_weights_leaves_alone_with_a_note(stages, tmp_path):
    convert(stages / "int8", tmp_path / "adapter", peft=True)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "The base's matrices were held in int8 while the adapter was trained" in card
    expected = pairs_of(stages / "int8")
    found = pairs_of(join(stages / "hub", tmp_path / "adapter"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_model_card_says_what_was_trained_and_how_to_load_it(stages, exported):
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    [said] = [line for line in card.splitlines() if line.startswith("- tuned")]
    assert said == (
        "- tuned: LoRA adapter of rank 4, alpha 8, dropout 0.1, on all matrices; 17,920 "
        "parameters, 7.91 % of the model's 226,496. Frozen beside it: base, matrices in float32."
    )
    assert "A LoRA adapter of 17,920 parameters, in float32" in card
    assert f"alone. Its base is {stages / 'base'}." in card.replace("\\", "")
    assert "python -m qalign_jax.convert --source=BASE --target=base" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    code = code.replace('"base"', repr(str(stages / "hub"))).replace(
        '"exported"', repr(str(exported))
    )
    places = {}
    exec(compile(code.partition("ids = ")[0], "README.md", "exec"), places)
    assert isinstance(places["model"], peft.PeftModel)


def test_what_has_no_adapter_to_leave_is_refused(stages, exported, tmp_path):
    cases = {
        "base": "holds all of a model, and no adapter; leave --peft out for the whole model",
        "hub": "holds all of a model, and no adapter; leave --peft out for the whole model",
        "layers": "gate, up, down of the layers 1 to 2, and no adapter; leave --peft out",
        f"hub+{exported}": "exported is an adapter as PEFT reads it already; copy it",
        "none": "no model here",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            convert(f"{stages}/{name}", tmp_path / "target", peft=True)
    with pytest.raises(ValueError, match="adapters are written in float32, not in bfloat16"):
        convert(stages / "tuned", tmp_path / "target", peft=True, dtype="bfloat16")
    with pytest.raises(ValueError, match="names an adapter already, and one is merged at a time"):
        convert(join(stages / "base", exported), tmp_path / "target", adapter=stages / "stable")
    with pytest.raises(ValueError, match="no adapter here; expected one of PEFT's or a stage's"):
        convert(stages / "hub", tmp_path / "target", adapter=stages / "layers")
    with pytest.raises(
        ValueError, match=r"and is another model\. Name the base that it was trained"
    ):
        convert(stages / "hub", tmp_path / "target", adapter=stages / "tuned")
    with pytest.raises(ValueError, match="tuned lie in each other"):
        convert(join(stages / "base", stages / "tuned"), stages / "tuned" / "inside")
    assert not (tmp_path / "target").exists()


def test_half_an_adapter_is_none_and_is_written_anew(stages, tmp_path, monkeypatch):
    target = tmp_path / "adapter"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lora, "_module", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(stages / "tuned", target, peft=True)
    assert (target / UNFINISHED).exists() and not (target / "adapter_config.json").exists()
    with pytest.raises(ValueError, match="its conversion has not ended"):
        load_model(join(stages / "hub", target))
    (target / "adapter_model.safetensors").write_text("cut off")
    convert(stages / "tuned", target, peft=True)
    assert check_sums(target) and not (target / UNFINISHED).exists()
    found = pairs_of(join(stages / "hub", target))
    jax.tree.map(np.testing.assert_array_equal, found, pairs_of(stages / "tuned"))
