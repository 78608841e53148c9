"""Training state that is saved comes back the same, on any mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.checkpoints import Checkpoints, describe_model, load_model
from qalign_jax.training.optimizer import OptimizerConfig
from qalign_jax.training.step import abstract_state, init_state, random_params

CONFIG = preset("tiny", vocab_size=420, n_kv_heads=4)
OPTIMIZER = OptimizerConfig()


@pytest.fixture(scope="module")
def state():
    mesh = make_mesh("fsdp:4,tensor:2")
    fresh = init_state(CONFIG, OPTIMIZER, mesh, random_params(CONFIG, mesh, 0))
    return dataclasses.replace(fresh, step=fresh.step + 3)


@pytest.mark.parametrize("spec", ["fsdp:8", "fsdp:2,tensor:4", "data:8"])
def test_a_state_is_restored_bit_for_bit_on_another_mesh(spec, state, tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(3, state)
    checkpoints.wait()
    restored = Checkpoints(tmp_path, every=1).restore(
        3, abstract_state(CONFIG, OPTIMIZER, make_mesh(spec))
    )
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    query = restored.params["layers"]["attention"]["query"]
    assert query.sharding.mesh.shape == make_mesh(spec).shape


def test_only_the_newest_checkpoints_stay_and_the_last_holds_weights_alone(
    state, tmp_path, tokenizer
):
    describe_model(tmp_path, CONFIG, tokenizer, "short")
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    for step in (1, 2):
        checkpoints.save(step, state)
    checkpoints.save(3, state, final=True)
    checkpoints.close()
    assert [child.name for child in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert not (tmp_path / "checkpoints" / "3" / "optimizer").exists()
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "3"):
        model = load_model(path)
        assert model.config == CONFIG and model.template == "short"
        assert model.tokenizer.encode("Tom has 3") == tokenizer.encode("Tom has 3")
        jax.tree.map(np.testing.assert_array_equal, model.params, state.params)


def test_a_stage_without_a_checkpoint_says_so(tmp_path, tokenizer):
    describe_model(tmp_path, CONFIG, tokenizer, "short")
    with pytest.raises(ValueError, match="no checkpoint is complete"):
        load_model(tmp_path)
