"""Conversion from Hugging Face and back is bit-identical; unfinished conversions are refused."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from qalign_jax.checkpoints import hf_config
from qalign_jax.checkpoints.model import load_model
from qalign_jax.checkpoints.safetensors import TensorFiles
from qalign_jax.convert import UNFINISHED, convert
from qalign_jax.faults import lock
from qalign_jax.generate import Request, generate
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe.recipe import Recipe
from tests.hugging_face import KINDS, save
from tests.pretrained import write_pretrained

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def assert_same_tensors(one, other):
    one, other = TensorFiles(one), TensorFiles(other)
    assert set(one.entries) == set(other.entries)
    for name, entry in one.entries.items():
        assert (entry.dtype, entry.shape) == (other.entries[name].dtype, other.entries[name].shape)
        assert one.read(name).tobytes() == other.read(name).tobytes(), name


def our_logits(path, tokens):
    model = load_model(path, dtype="float32")
    index = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    logits = jax.jit(model.module.apply, static_argnames="method")(
        {"params": model.params}, tokens, index, np.ones_like(tokens), method="logits"
    )
    return np.asarray(logits)[..., : model.config.vocab_size]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_changes_no_bit_and_no_logit(kind, dtype, tmp_path, model_file):
    theirs, ours, back = (tmp_path / name for name in ("theirs", "ours", "back"))
    model = save(kind, theirs, model_file, DTYPES[dtype])
    told = convert(theirs, ours, mesh="fsdp:4,tensor:2")
    parameters = sum(weight.numel() for weight in model.parameters())
    assert told == {
        "source": str(theirs), "target": str(ours), "parameters": parameters,
        "bytes": parameters * DTYPES[dtype].itemsize, "dtype": dtype,
    }  # fmt: skip
    told = convert(ours, back, mesh="fsdp:2,tensor:4", shard_bytes=200_000)
    assert (told["parameters"], told["dtype"]) == (parameters, dtype)
    assert_same_tensors(theirs, back)
    assert len(list(back.glob("model-*.safetensors"))) > 1

    again = transformers.AutoModelForCausalLM.from_pretrained(back, attn_implementation="eager")
    assert type(again) is type(model) and again.dtype == DTYPES[dtype]
    again = type(model).from_pretrained(back, dtype=torch.float32, attn_implementation="eager")
    tokens = np.random.default_rng(0).integers(0, 421, (2, 20))
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens)).logits.numpy()
        found = again(input_ids=torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(our_logits(ours, tokens), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_config_says_what_was_read_in_both_releases_words(kind, tmp_path, model_file):
    theirs, ours, back = (tmp_path / name for name in ("theirs", "ours", "back"))
    save(kind, theirs, model_file)
    convert(theirs, ours)
    convert(ours, back)
    assert hf_config.read_config(back) == hf_config.read_config(theirs)
    raw = json.loads((back / "config.json").read_text())
    rope = raw.pop("rope_parameters")  # absent in transformers 4
    assert raw["rope_theta"] == rope["rope_theta"]
    (back / "config.json").write_text(json.dumps(raw))
    assert hf_config.read_config(back) == hf_config.read_config(theirs)
    generation = transformers.GenerationConfig.from_pretrained(back)
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)


def test_one_export_restores_on_every_mesh(tmp_path, model_file):
    theirs, ours, back = (tmp_path / name for name in ("theirs", "ours", "back"))
    save("llama2_7b", theirs, model_file)
    convert(theirs, ours)
    convert(ours, back)
    expected = load_model(theirs).params
    for path in (ours, back):
        for spec in ("fsdp:8,tensor:1", "fsdp:2,tensor:4", "fsdp:1,tensor:8", "fsdp:2x2,tensor:2"):
            found = load_model(path, mesh=make_mesh(spec)).params
            jax.tree.map(np.testing.assert_array_equal, found, expected)
            query = found["layers"]["attention"]["query"]
            assert len({shard.index for shard in map(_hashable, query.addressable_shards)}) == 8


class _hashable:
    def __init__(self, shard):
        self.index = str(shard.index)


def test_a_dtype_asked_for_is_written(tmp_path, model_file):
    theirs, ours, back = (tmp_path / name for name in ("theirs", "ours", "back"))
    model = save("llama2_7b", theirs, model_file)
    convert(theirs, ours, dtype="bfloat16")
    assert convert(ours, back)["dtype"] == "bfloat16"
    weight = TensorFiles(back).read("model.layers.0.mlp.up_proj.weight").astype("f4")
    expected = model.model.layers[0].mlp.up_proj.weight.detach().bfloat16().float().numpy()
    np.testing.assert_array_equal(weight, expected)


def test_an_adapter_is_merged_on_the_way_in(tmp_path, model_file):
    base, ours = tmp_path / "base", tmp_path / "ours"
    model = save("llama2_70b", base, model_file)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    convert(base, ours, adapter=tmp_path / "adapter")
    record = json.loads((ours / "stage.json").read_text())["made_from"]
    assert record["adapter"] == str(tmp_path / "adapter") and len(record["adapter_weights"]) == 16
    merged = tuned.merge_and_unload()
    tokens = np.random.default_rng(0).integers(0, 421, (1, 12))
    with torch.no_grad():
        expected = merged(input_ids=torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(our_logits(ours, tokens), expected, atol=1e-4)


def test_half_an_export_is_no_model_and_is_written_anew(tmp_path, model_file, monkeypatch):
    theirs, ours, back = (tmp_path / name for name in ("theirs", "ours", "back"))
    save("llama2_7b", theirs, model_file)
    convert(theirs, ours)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hf_config, "config_json", stop)  # the last file written
        with pytest.raises(KeyboardInterrupt):
            convert(ours, back)
    assert (back / "model.safetensors").exists() and (back / UNFINISHED).exists()
    with pytest.raises(ValueError, match="its conversion has not ended"):
        load_model(back)
    with pytest.raises((OSError, ValueError)):
        transformers.AutoModelForCausalLM.from_pretrained(back)
    (back / "model-00001-of-00009.safetensors").write_text("of another sharding")
    convert(ours, back)
    assert {file.name for file in back.iterdir()} == {
        "README.md", "SHA256SUMS", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    assert_same_tensors(theirs, back)


def test_a_target_that_is_something_else_is_left_alone(tmp_path, model_file):
    theirs, target = tmp_path / "theirs", tmp_path / "target"
    save("llama2_7b", theirs, model_file)
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="target is there already"):
        convert(theirs, target)
    assert (target / "thesis.tex").read_text() == "years of work"


def test_a_target_that_another_conversion_writes_is_left_to_it(tmp_path, model_file):
    theirs, target = tmp_path / "theirs", tmp_path / "target"
    save("llama2_7b", theirs, model_file)
    target.mkdir()
    (target / UNFINISHED).touch()
    held = rf"conversion\.lock is held by process {os.getpid()} on .*; name another folder"
    with lock.hold(target / "conversion.lock", ""), pytest.raises(ValueError, match=held):
        convert(theirs, target)
    (target / "conversion.lock").touch()  # left by a process that was killed
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes\.txt', which no conversion writes"):
        convert(theirs, target)
    (target / "notes.txt").unlink()
    convert(theirs, target)


def test_source_and_target_in_each_other_are_refused(tmp_path, model_file):
    save("llama2_7b", tmp_path / "outer" / "theirs", model_file)
    for target in (tmp_path / "outer", tmp_path / "outer" / "theirs" / "inner"):
        with pytest.raises(ValueError, match="lie in each other"):
            convert(tmp_path / "outer" / "theirs", target)


def test_values_that_a_dtype_cannot_hold_are_refused_by_name(tmp_path, model_file):
    theirs = tmp_path / "theirs"
    save("llama2_7b", theirs, model_file)
    tensors = safetensors.numpy.load_file(theirs / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    safetensors.numpy.save_file(tensors, theirs / "model.safetensors")
    convert(theirs, tmp_path / "wide", dtype="bfloat16")
    with pytest.raises(
        ValueError, match=r"layers/mlp/up \(float16\) holds values that are not finite"
    ):
        convert(theirs, tmp_path / "narrow", dtype="float16")
    assert not (tmp_path / "narrow").exists()


def test_relative_paths_and_the_folder_itself_are_taken(tmp_path, model_file, monkeypatch):
    save("llama2_7b", tmp_path / "theirs", model_file)
    monkeypatch.chdir(tmp_path)
    convert("theirs", "ours")
    monkeypatch.chdir(tmp_path / "ours")
    convert(".", "../back")
    monkeypatch.chdir(tmp_path / "ours" / "checkpoints")
    convert("0", "../../again")
    for path in ("back", "again"):
        assert_same_tensors(tmp_path / "theirs", tmp_path / path)
        assert "These are the weights of `ours`" in (tmp_path / path / "README.md").read_text()


def test_a_source_that_is_no_model_leaves_no_target(tmp_path):
    with pytest.raises(ValueError, match="no model here"):
        convert(tmp_path / "nowhere", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.slow
def test_the_real_260k_model_trains_leaves_and_says_the_same_in_transformers(real_data, tmp_path):
    write_pretrained(real_data / "tinyllama_260k", tmp_path / "hub")
    stories = [
        {"instruction": f"Tell of {name}.", "response": f"Once {name} had {n} toys."}
        for n, name in enumerate(["Tim", "Lily", "Sam", "Anna"] * 8)
    ]
    file = tmp_path / "stories.jsonl"
    file.write_text("".join(json.dumps(story) + "\n" for story in stories))
    prompts = ["Once upon a time", "Lily and Tim went to the park.", "Sam had a toy."]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    )
    recipe = Recipe(_recipe(tmp_path / "hub", file, tmp_path / "cache"), tmp_path / "run")
    assert recipe.run()["stages"] == {"tuning": "done"}
    convert(tmp_path / "run" / "tuning", tmp_path / "tuned")

    def ours(path):
        output = tmp_path / "output.jsonl"
        request = Request(checkpoint=str(path), max_new_tokens=40, dtype="float32")
        generate(request, tmp_path / "prompts.jsonl", output)
        return [json.loads(line)["output"] for line in output.read_text().splitlines()]

    def theirs(path):
        model = transformers.AutoModelForCausalLM.from_pretrained(path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        texts = []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            answer = model.generate(ids, max_new_tokens=40)[0, ids.shape[1] :]
            texts.append(tokenizer.decode(answer, skip_special_tokens=True))
        return texts

    texts = ours(tmp_path / "run" / "tuning")
    assert texts == ours(tmp_path / "tuned") == theirs(tmp_path / "tuned")
    assert texts != ours(tmp_path / "hub") and all(texts)
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert f"| tuning | {tmp_path / 'hub'} | jsonl | 20 |" in card


def _recipe(init, file, cache):
    from qalign_jax.recipe import parts

    config = parts.recipe("tune", ("tuning",), cache_dir=str(cache), mesh="fsdp:4,tensor:2")
    config.tuning = parts.training(
        str(init), {"stories": parts.source("jsonl", str(file))},
        steps=20, rows=4, length=128, lr=1e-3, dtype="float32",
    )  # fmt: skip
    return config


def test_the_command_ends_with_status_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "qalign_jax.convert", f"--source={tmp_path / 'none'}"]
    ended = subprocess.run(
        [*command, f"--target={tmp_path / 'target'}"], capture_output=True, text=True
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and "no model here" in ended.stderr
