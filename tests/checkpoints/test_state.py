"""Saved training state restores bit for bit, on any mesh."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from qalign_jax.checkpoints.card import Card, describe_model, read_card
from qalign_jax.checkpoints.model import load_model
from qalign_jax.checkpoints.state import Checkpoints
from qalign_jax.models.config import Execution, RopeScaling
from qalign_jax.models.params import random_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.optimizer import OptimizerConfig
from qalign_jax.training.step import TrainState, abstract_state, init_state

CONFIG, EXECUTION = preset("tiny", vocab_size=420, n_kv_heads=4)
CARD = Card(CONFIG, EXECUTION, "short")
OPTIMIZER = OptimizerConfig()


@pytest.fixture(scope="module")
def state():
    mesh = make_mesh("fsdp:4,tensor:2")
    fresh = init_state(CONFIG, OPTIMIZER, mesh, random_params(CONFIG, mesh, 0))
    return dataclasses.replace(fresh, step=fresh.step + 3)


@pytest.mark.parametrize("spec", ["fsdp:8", "fsdp:2,tensor:4", "data:8"])
def test_a_state_is_restored_bit_for_bit_on_another_mesh(spec, state, tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(3, state.parts())
    checkpoints.wait()
    wanted = abstract_state(CONFIG, OPTIMIZER, make_mesh(spec)).parts()
    step, parts = Checkpoints(tmp_path, every=1).restore(wanted)
    restored = TrainState.from_parts(parts)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    query = restored.params["layers"]["attention"]["query"]
    assert query.sharding.mesh.shape == make_mesh(spec).shape


def test_only_the_newest_checkpoints_stay_and_the_last_holds_weights_alone(
    state, tmp_path, tokenizer
):
    describe_model(tmp_path, CARD, tokenizer)
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    for step in (1, 2):
        checkpoints.save(step, state.parts())
    checkpoints.save(3, {"params": state.params}, final=True)
    checkpoints.trim()
    checkpoints.close()
    assert [child.name for child in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert not (tmp_path / "checkpoints" / "3" / "optimizer").exists()
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "3"):
        model = load_model(path)
        assert (model.config, model.execution, model.template) == CARD[:3]
        assert model.tokenizer.encode("Tom has 3") == tokenizer.encode("Tom has 3")
        jax.tree.map(np.testing.assert_array_equal, model.params, state.params)


# model.json of the first release, before the architecture and its execution were separate.
FIRST_MODEL_JSON = """{
 "model": {
  "vocab_size": 420, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "d_ff": 160,
  "head_size": 16, "max_length": 2048, "rope_theta": 500000.0,
  "rope_scaling": {
   "kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
   "original_max_length": 8192
  },
  "norm_eps": 1e-05, "sliding_window": 0, "tied": false, "init_scale": 0.02, "dtype": "float32",
  "remat": "none", "attention": "plain", "scan_layers": false
 },
 "template": "short"
}
"""


def test_a_model_json_of_the_first_release_loads_and_is_written_alike(tmp_path, tokenizer):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "7").mkdir()
    (tmp_path / "model.json").write_text(FIRST_MODEL_JSON)
    card = read_card(tmp_path)
    scaling = RopeScaling("llama3", 8.0)
    config = dataclasses.replace(CONFIG, rope_theta=500_000.0, rope_scaling=scaling)
    execution = Execution("float32", remat="none", attention="plain", scan_layers=False)
    assert card == Card(config, execution, "short")
    describe_model(tmp_path, card, tokenizer)
    assert json.loads((tmp_path / "model.json").read_text()) == json.loads(FIRST_MODEL_JSON)


@pytest.mark.parametrize("change", ["{", "[]", '{"model": {}}', '{"model": {"d_model": 1}}'])
def test_a_model_json_that_is_none_is_named(change, tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "model.json").write_text(change)
    with pytest.raises(ValueError, match=r"model\.json: not"):
        read_card(tmp_path)


ABSURD = {
    "rope_theta": ("-Infinity", "NaN", "0", "-1", "1e300", "null", '"10000"', "true"),
    "norm_eps": ("NaN", "0", "-1e-5", "2", "null"),
    "d_model": ("0", "-8", "8.0", "true", "1e999", "100000000", '"8"', "[8]"),
    "n_layers": ("0", "1000000", "-1"),
    "n_kv_heads": ("3", "0", "8"),
    "head_size": ("7", "0"),
    "sliding_window": ("-1", "0.5"),
    "tied": ("0", "null"),
    "dtype": ('"float64"', "null", "32", '["float32"]'),
    "remat": ('"all"', "null"),
    "attention": ('"flash"',),
    "scan_layers": ("1",),
    "rope_scaling": ("3", "{}", '{"kind": "yarn", "factor": 2}', '{"kind": "linear", "factor": 0}',
                     '{"kind": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}',
                     '{"kind": "linear", "factor": 2, "other": 1}'),
    "unknown": ("1",),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, v) for key in ABSURD for v in ABSURD[key]])
def test_a_value_of_model_json_that_no_model_has_is_refused_by_its_key(key, value, tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    model = json.loads(FIRST_MODEL_JSON)
    model["model"][key] = "@"
    (tmp_path / "model.json").write_text(json.dumps(model).replace('"@"', value))
    with pytest.raises(ValueError, match=r"model\.json: .*; convert or train it again") as raised:
        read_card(tmp_path)
    name = "RopeScaling" if key == "rope_scaling" else key
    said = str(raised.value)
    assert name in said or key in said or "no number of JSON" in said or "too large" in said


@pytest.mark.parametrize("template", [None, 3, [], "no slot", "{instruction} {instruction}"])
def test_a_template_without_its_slot_is_refused(template, tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    model = json.loads(FIRST_MODEL_JSON) | {"template": template}
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(ValueError, match=r"model\.json: .*template"):
        read_card(tmp_path)


def test_a_stage_without_a_checkpoint_says_so(tmp_path, tokenizer):
    describe_model(tmp_path, CARD, tokenizer)
    with pytest.raises(ValueError, match="no checkpoint is complete"):
        load_model(tmp_path)
