"""A trained part and its base: merged equals beside, and what belongs to no base is refused."""

import json
import shutil

import jax
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from qalign_jax.checkpoints.card import base_of, read_card
from qalign_jax.checkpoints.model import load_model
from qalign_jax.checkpoints.part import join
from qalign_jax.decoding.system import System
from qalign_jax.faults.checksums import Damaged
from qalign_jax.models.adapter import Adapted, Adapter
from qalign_jax.models.quantization import quantized_matrix
from qalign_jax.models.trainable import Trainable
from tests.checkpoints.test_integrity import flip_a_bit
from tests.stages import CONFIG, EXECUTION, logits, write_stages, write_whole

ADAPTER = Adapter(rank=4, alpha=8)
PARTS = {
    "adapter": ("base", Trainable(ADAPTER)),
    "some": ("base", Trainable(Adapter(rank=3, matrices=("query", "down"), scaling="sqrt_rank"))),
    "int8": ("base", Trainable(ADAPTER, int8=True)),
    "layers": ("base", Trainable.of("layers:1-2/mlp")),
    "behind": ("adapter", Trainable(Adapter(rank=2))),  # of a stage with merge=True
    "behind_int8": ("int8", Trainable(Adapter(rank=2))),
}
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 20))
A, B = (f"base_model.model.model.layers.{{}}.self_attn.q_proj.lora_{end}.weight" for end in "AB")


@pytest.fixture(scope="module")
def stages(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("stages")
    write_stages(folder, PARTS, tokenizer)
    return folder


def wide(path, **how):
    return load_model(path, dtype="float32", **how)


def assert_equal_logits(one, other, atol=1e-5):
    np.testing.assert_allclose(logits(one, TOKENS), logits(other, TOKENS), atol=atol)


def test_an_adapter_trained_beside_int8_is_not_put_beside_other_weights(stages):
    large, base = (str(stages / "base"),) * 2

    def system(expert, **dtypes):
        return System.load([large, str(stages / expert), base], dtype="float32", **dtypes)

    for expert, dtypes, shared in (
        ("adapter", {}, True),
        ("int8", {}, False),
        ("int8", {"weights_dtype": "int8"}, True),
        ("adapter", {"weights_dtype": "int8"}, True),
    ):
        _, expert_model, other = system(expert, **dtypes).models
        own = expert_model.base.params["layers"]["mlp"]["up"]
        assert (own is other.params["layers"]["mlp"]["up"]) == shared
        if not shared:
            assert_equal_logits(expert_model, wide(stages / expert))


@pytest.mark.parametrize(
    ("name", "held"), [("adapter", ""), ("some", ""), ("int8", "int8"), ("behind", "")]
)
def test_an_adapter_merged_gives_the_logits_of_one_beside_its_base(name, held, stages):
    beside = wide(stages / name, weights_dtype=held, adapted=True)
    adapter = PARTS[name][1].adapter
    assert beside.adapter == adapter and adapter
    nodes = jax.tree.leaves(beside.params, is_leaf=lambda node: isinstance(node, Adapted))
    assert sum(isinstance(node, Adapted) for node in nodes) == len(adapter.matrices)
    merged, base = wide(stages / name), wide(stages / PARTS[name][0])
    assert merged.adapter is None
    assert_equal_logits(beside, merged)
    assert_equal_logits(wide(stages / name, weights_dtype="", adapted=False), merged)
    assert np.abs(logits(merged, TOKENS) - logits(base, TOKENS)).max() > 0.1


def test_a_merged_int8_base_is_its_dequantised_matrices(stages):
    base, merged = (wide(stages / name).params["layers"]["mlp"] for name in ("base", "int8"))
    held = quantized_matrix(base["up"])
    assert held.scale is not None
    dequantised = held.values.astype("f4") * held.scale[:, None]
    added = wide(stages / "adapter").params["layers"]["mlp"]["up"] - base["up"]
    np.testing.assert_allclose(merged["up"], dequantised + added, atol=1e-6)
    assert np.abs(merged["up"] - base["up"] - added).max() > 1e-4


def test_an_adapter_behind_one_beside_int8_matrices_has_these_dequantised(stages):
    first, second = (wide(stages / name).params["layers"]["mlp"] for name in ("int8", "behind"))
    plain = wide(stages / "adapter").params["layers"]["mlp"]
    both = wide(stages / "behind_int8").params["layers"]["mlp"]
    np.testing.assert_allclose(both["up"] - first["up"], second["up"] - plain["up"], atol=1e-6)


def test_trained_layers_stand_in_their_places_and_the_rest_is_the_bases(stages):
    base, both = (wide(stages / name).params["layers"] for name in ("base", "layers"))
    for part, tree in base.items():
        for name, leaf in tree.items():
            equal = (leaf == both[part][name]).all(axis=tuple(range(1, leaf.ndim))).tolist()
            assert equal == [True, part != "mlp", part != "mlp", True], (part, name)
    assert_equal_logits(wide(stages / "layers", weights_dtype=""), wide(stages / "layers"))


def test_an_adapter_is_named_behind_its_base_wherever_that_lies(stages, tmp_path):
    expected = wide(stages / "adapter")
    assert_equal_logits(wide(join(stages / "base", stages / "adapter")), expected, 0)
    moved = tmp_path / "moved"
    shutil.copytree(stages / "adapter", moved)
    with pytest.raises(ValueError, match=rf"base is not there; name its base as BASE\+{moved}"):
        load_model(moved)
    assert_equal_logits(wide(join(stages / "base", moved)), expected, 0)
    assert base_of(join(stages / "base", moved)) == str(stages / "base")


def test_an_adapter_of_another_base_is_refused(stages, tmp_path, tokenizer):
    write_whole(tmp_path / "other", tokenizer, seed=5)
    with pytest.raises(ValueError, match=r"other has .*, and is another model. Name the base that"):
        load_model(join(tmp_path / "other", stages / "adapter"))
    for name in ("base", "layers"):
        with pytest.raises(ValueError, match="no adapter here; expected one of PEFT's or a stage"):
            load_model(join(stages / "base", stages / name))


def test_a_stage_whose_part_is_damaged_is_refused(stages, tmp_path):
    shutil.copytree(stages / "base", tmp_path / "base")
    shutil.copytree(stages / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "model.json"
    card = json.loads(file.read_text())
    card["part"]["adapter"]["rank"] = 3
    whole = file.read_text()
    file.write_text(json.dumps(card))
    with pytest.raises(Damaged, match=r"model\.json is damaged: its bytes are not those"):
        load_model(join(tmp_path / "base", tmp_path / "adapter"))
    (tmp_path / "adapter" / "SHA256SUMS").unlink()
    with pytest.raises(Damaged, match=r"layers/attention/key/a has shape .*, and .* there"):
        load_model(join(tmp_path / "base", tmp_path / "adapter"))
    file.write_text(whole)
    flip_a_bit(tmp_path / "adapter" / "checkpoints" / "7")
    with pytest.raises(Damaged, match=r"Delete .*adapter and start its run or conversion again"):
        load_model(tmp_path / "adapter")


@pytest.fixture(scope="module")
def theirs(stages, tmp_path_factory):
    """An adapter of peft's beside the Hugging Face directory: its folder, and peft's logits."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    base = transformers.AutoModelForCausalLM.from_pretrained(stages / "hub", dtype=torch.float32)
    torch.manual_seed(0)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, lora_dropout=0.1, use_rslora=True,
        target_modules=["q_proj", "o_proj", "up_proj"],
    )  # fmt: skip
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
        expected = model(input_ids=torch.from_numpy(TOKENS)).logits.numpy()
    model.save_pretrained(folder)
    return folder, expected


@pytest.mark.parametrize("base", ["hub", "base"])
def test_an_adapter_of_pefts_named_behind_its_base_has_pefts_logits(base, stages, theirs):
    folder, expected = theirs
    name = join(stages / base, folder)
    beside = wide(name, weights_dtype="", adapted=True)
    matrices = ("query", "out", "up")
    assert beside.adapter == Adapter(4, 6, dropout=0.1, matrices=matrices, scaling="sqrt_rank")
    for model in (beside, wide(name)):
        np.testing.assert_allclose(logits(model, TOKENS), expected, atol=1e-4)
    card = read_card(name)
    assert card.part and card.part.base == str(stages / base)
    if base == "base":
        assert card[:3] == (CONFIG, EXECUTION, "short")


def tensors_of(folder, **changes):
    """The adapter's tensors, some changed; None takes one out."""
    found = safetensors.numpy.load_file(folder / "adapter_model.safetensors") | changes
    return {name: value for name, value in found.items() if value is not None}


ZEROS = np.zeros((4, 64), np.float32)
WRONG = {
    "more than a rank": ({"rank_pattern": {"q_proj": 2}}, {}, "rank_pattern is .*merge it into"),
    "more than an alpha": ({"alpha_pattern": {"q_proj": 2}}, {}, "alpha_pattern is .*--adapter="),
    "a whole head": ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save is .*--source=BASE"),
    "chosen layers": ({"layers_to_transform": [0]}, {}, "layers_to_transform is .*--target=DIR"),
    "some layers": ({}, {A.format(3): None, B.format(3): None}, "is not in all layers"),
    "the head": ({}, {"base_model.model.lm_head.lora_A.weight": ZEROS}, "or no matrix; such an"),
    "rank 0": ({"r": 0}, {}, r"adapter_config\.json: r is 0.* expected"),
    "another rank": ({"r": 8}, {}, r"has the shape \(4, 64\); the base, with rank 8 of"),
    "another width": ({}, {A.format(2): ZEROS[:, 1:]}, r"2\..*\(4, 63\); the base, .*base\?"),
    "half a pair": ({}, {B.format(1): None}, r"layers\.1\..*lora_B\.weight is not in all"),
    "values": ({}, {A.format(1): ZEROS * np.nan}, r"layers\.1\..* values that are not finite"),
    "another start": ({"init_lora_weights": "pissa"}, {}, "belongs to no base on disk"),
    "later tokens": ({"alora_invocation_tokens": [1]}, {}, "only None is merged here"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_an_adapter_of_pefts_that_has_no_place_beside_the_base_is_refused(
    name, stages, theirs, tmp_path
):
    settings, tensors, message = WRONG[name]
    config = json.loads((theirs[0] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | settings))
    found = tensors_of(theirs[0], **tensors)
    safetensors.numpy.save_file(found, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_model(join(stages / "hub", tmp_path))


MORE_OR_FEWER = {
    -1: r"layers\.3.* is of a layer that the base, with",
    1: r"layers\.4.* is missing, of",
}


@pytest.mark.parametrize("change", MORE_OR_FEWER)
def test_an_adapter_of_more_or_fewer_layers_is_refused(change, stages, theirs, tmp_path):
    config = transformers.LlamaConfig.from_pretrained(stages / "hub")
    config.num_hidden_layers += change
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    shutil.copy(stages / "hub" / "tokenizer.model", tmp_path / "other")
    with pytest.raises(ValueError, match=rf"{MORE_OR_FEWER[change]}.*Is it the adapter's base\?"):
        load_model(join(tmp_path / "other", theirs[0]))


def test_an_adapter_of_pefts_that_is_half_there_is_refused(stages, theirs, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(theirs[0], folder)
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors.*download it again"):
        load_model(join(stages / "hub", folder))
    file.unlink()
    with pytest.raises(ValueError, match=r"there is no adapter_model\.safetensors"):
        load_model(join(stages / "hub", folder))
    file.write_bytes(whole)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="no model here"):
        load_model(join(stages / "hub", folder))
