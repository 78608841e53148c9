"""int8 as it is read: from Hugging Face directories, with an adapter, from a stage's folder."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from qalign_jax.checkpoints import hf_weights
from qalign_jax.checkpoints.lora import MergedTensors
from qalign_jax.checkpoints.model import load_model, save_model
from qalign_jax.checkpoints.safetensors import TensorFiles
from qalign_jax.models.params import abstract_held_on, hold
from qalign_jax.models.quantization import Matrix
from qalign_jax.parallel.mesh import make_mesh
from tests.hugging_face import save


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama2_70b", "tied"])
def test_what_is_quantised_while_it_is_read_is_what_the_loaded_model_becomes(
    kind, dtype, tmp_path, model_file
):
    save(kind, tmp_path, model_file).to(dtype).save_pretrained(tmp_path)
    wide = load_model(tmp_path)  # in f32
    narrow = load_model(tmp_path, param_dtype="stored")
    mesh = make_mesh("fsdp:2,tensor:4")
    for compute in ("float32", "bfloat16"):
        expected = hold(wide.config, wide.params, compute, apart=False, int8=True)
        one = load_model(tmp_path, dtype=compute, weights_dtype="int8")
        assert one.execution.dtype == compute
        assert_same(one.params, expected)
        stored = hold(wide.config, narrow.params, compute, apart=False, int8=True)
        assert_same(one.params["layers"]["mlp"], stored["layers"]["mlp"])
    split = load_model(tmp_path, mesh=mesh, dtype="bfloat16", weights_dtype="int8").params
    assert_same(split, expected)
    wanted = abstract_held_on(wide.config, mesh, "bfloat16", int8=True)
    jax.tree.map(lambda leaf, shape: _same_kind(leaf, shape), split, wanted)


def _same_kind(leaf, shape):
    assert (leaf.dtype, leaf.shape) == (shape.dtype, shape.shape)
    assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


def test_weights_for_decoding_in_the_compute_dtype_are_read_as_it_holds_them(tmp_path, model_file):
    save("llama2_70b", tmp_path, model_file)
    wide = load_model(tmp_path)
    found = load_model(tmp_path, dtype="bfloat16", weights_dtype="").params
    assert_same(found, hold(wide.config, wide.params, "bfloat16", apart=False))
    assert found["layers"]["mlp"]["gate"].values.dtype == "bfloat16"
    assert found["norm"]["scale"].dtype == "float32"


def test_an_adapter_is_merged_before_weights_are_quantised(tmp_path, model_file):
    model = save("llama2_7b", tmp_path / "base", model_file)
    options = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    adapted = peft.get_peft_model(model, options)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    tensors = MergedTensors(TensorFiles(tmp_path / "base"), tmp_path / "adapter")
    config, mesh = load_model(tmp_path / "base").config, make_mesh("fsdp:2,tensor:4")
    found = hf_weights.read_params(tensors, config, mesh, "float32", "int8")
    merged = hf_weights.read_params(tensors, config, mesh)
    assert_same(found, hold(config, merged, "float32", apart=False, int8=True))
    alone = load_model(tmp_path / "base", weights_dtype="int8").params
    query = [tree["layers"]["attention"]["query"].values for tree in (found, alone)]
    assert (np.asarray(query[0]) != np.asarray(query[1])).any()


def test_a_stages_folder_is_quantised_from_the_compute_dtype_and_nothing_wide_is_left(
    tmp_path, model_file
):
    model = save("llama2_70b", tmp_path / "hf", model_file)
    with torch.no_grad():
        model.model.norm.weight.normal_()
    model.save_pretrained(tmp_path / "hf")
    save_model(tmp_path / "stage", load_model(tmp_path / "hf"))
    narrow = load_model(tmp_path / "stage", dtype="bfloat16")
    for mesh in (None, make_mesh("fsdp:2,tensor:4")):
        before = {id(array) for array in jax.live_arrays()}
        model = load_model(tmp_path / "stage", mesh=mesh, dtype="bfloat16", weights_dtype="int8")
        known = before | {id(leaf) for leaf in jax.tree.leaves(model.params)}
        assert all(id(array) in known or array.size == 1 for array in jax.live_arrays())
        expected = hold(model.config, narrow.params, "bfloat16", apart=False, int8=True)
        assert_same(model.params["layers"]["mlp"], expected["layers"]["mlp"])
        assert_same(model.params["embed"], expected["embed"])
    exact = load_model(tmp_path / "stage", dtype="float32", weights_dtype="int8").params
    wide = load_model(tmp_path / "hf")
    assert_same(exact, hold(wide.config, wide.params, "float32", apart=False, int8=True))
    assert model.params["norm"]["scale"].dtype == "float32"  # and not rounded to bf16 before
    np.testing.assert_array_equal(model.params["norm"]["scale"], wide.params["norm"]["scale"])


def test_weights_that_are_not_finite_are_refused_though_int8_has_no_nan(tmp_path, model_file):
    model = save("llama2_7b", tmp_path, model_file)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layers/mlp/up.* holds values that are not finite"):
        load_model(tmp_path, weights_dtype="int8")


def test_a_dtype_that_there_is_not_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="weights_dtype='fp8': expected int8, or nothing"):
        load_model(tmp_path / "nowhere", weights_dtype="fp8")


def test_the_stack_of_an_int8_weight_is_half_of_bf16(tmp_path, model_file):
    save("llama2_7b", tmp_path, model_file)
    gate = load_model(tmp_path, weights_dtype="int8").params["layers"]["mlp"]["gate"]
    assert isinstance(gate, Matrix) and gate.values.dtype == jnp.int8
    assert gate.values.shape == (3, 64, 160) and gate.scale.shape == (3, 160)
