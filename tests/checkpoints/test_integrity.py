"""A checkpoint's damage is found whatever it hits, and the newest whole one is used."""

import os
import random
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from qalign_jax.checkpoints import integrity
from qalign_jax.checkpoints.card import Card, describe_model
from qalign_jax.checkpoints.model import Model, load_model, save_model
from qalign_jax.checkpoints.state import Checkpoints
from qalign_jax.faults.checksums import Damaged
from qalign_jax.faults.storage import StorageFailed
from qalign_jax.models.params import random_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh, sharding_of
from qalign_jax.training.optimizer import OptimizerConfig
from qalign_jax.training.step import abstract_state, init_state

CONFIG, EXECUTION = preset("tiny", vocab_size=420)
OPTIMIZER = OptimizerConfig()
SINGLE = make_mesh("single")
WANTED = abstract_state(CONFIG, OPTIMIZER, SINGLE).parts()


@pytest.fixture(scope="module")
def states():
    """Two states that differ everywhere."""
    return [
        init_state(CONFIG, OPTIMIZER, SINGLE, random_params(CONFIG, SINGLE, seed)).parts()
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def saved(states, tmp_path_factory, tokenizer):
    """A stage's folder with the steps 15 and 16, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    describe_model(folder, Card(CONFIG, EXECUTION, "short"), tokenizer)
    checkpoints = Checkpoints(folder, every=1)
    for step, parts in zip((15, 16), states, strict=True):
        checkpoints.save(step, parts)
    checkpoints.close()
    return folder


@pytest.fixture
def stage(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "stage")


def values(dtype):
    found = np.random.default_rng(0).standard_normal((6, 4, 10), np.float32)
    found[0, 0, :4] = 0, 1e-40, -1e-39, 2.0**-133  # subnormal numbers among them
    return found.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.int32])
def test_a_checksum_is_the_same_on_every_mesh_and_changes_with_every_bit(dtype):
    array = values(np.float32).view(np.int32) if dtype is np.int32 else values(dtype)
    name = np.dtype(dtype).name
    expected = integrity.checksums({"a": jnp.asarray(array)})["a"]
    for spec, axes in (("fsdp:2", ("embed", None, None)), ("tensor:4", (None, "heads", None))):
        there = jax.device_put(
            array, sharding_of(make_mesh(spec, jax.devices()[: int(spec[-1])]), axes)
        )
        assert len(there.sharding.device_set) > 1
        assert integrity.checksums({"a": there})["a"] == expected
    bits = array.view(f"u{array.itemsize}")
    seen = {expected[name]}
    for index in (0, 7, array.size - 1):
        for bit in range(8 * array.itemsize):
            other = bits.copy()
            other.flat[index] ^= np.asarray(1 << bit, bits.dtype)
            [value] = integrity.checksums({"a": jnp.asarray(other.view(dtype))})["a"].values()
            seen.add(value)
    assert len(seen) == 1 + 3 * 8 * array.itemsize
    for pair in ([6, 7], [7, 50]):
        swapped = array.copy()
        swapped.flat[pair] = swapped.flat[pair[::-1]]
        assert integrity.checksums({"a": jnp.asarray(swapped)})["a"] != expected


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("loaded", [np.float32, ml_dtypes.bfloat16])
def test_a_checksum_in_another_dtype_is_that_of_the_cast_array(dtype, loaded):
    array = values(dtype)
    there = integrity.checksums({"a": jnp.asarray(array)}, integrity.LOADED)["a"]
    cast = array.astype(np.float32).astype(loaded)
    own = integrity.checksums({"a": jnp.asarray(cast)})["a"]
    assert own == {np.dtype(loaded).name: there[np.dtype(loaded).name]}


def test_a_saved_state_restores_and_its_newest_step_is_taken(stage, states):
    step, parts = Checkpoints(stage, every=1).restore(WANTED)
    assert step == 16
    jax.tree.map(np.testing.assert_array_equal, parts, states[1])
    assert not (stage / "damaged").exists()


def data_files(folder):
    """The files of a checkpoint that hold the arrays of its parameters."""
    return sorted(path for path in (folder / "params").rglob("d/*") if path.is_file())


def flip_a_bit(step_dir):
    file = max(data_files(step_dir), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


def cut(step_dir):
    for file in data_files(step_dir):
        os.truncate(file, file.stat().st_size // 2)


def lose_the_arrays(step_dir):
    for file in data_files(step_dir):
        file.unlink()


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "a cut array": cut,
    "missing arrays": lose_the_arrays,
    "no optimizer": lambda step_dir: shutil.rmtree(step_dir / "optimizer"),
    "no parameters": lambda step_dir: shutil.rmtree(step_dir / "params"),
    "no metadata": lambda step_dir: (step_dir / "_CHECKPOINT_METADATA").unlink(),
    "torn metadata": lambda step_dir: os.truncate(step_dir / "_CHECKPOINT_METADATA", 100),
    "empty metadata": lambda step_dir: os.truncate(step_dir / "params" / "_METADATA", 0),
    "nothing": lambda step_dir: [
        shutil.rmtree(path) if path.is_dir() else path.unlink() for path in step_dir.iterdir()
    ],
}


# reads that Orbax leaves unfinished where another has failed
@pytest.mark.filterwarnings("ignore:Exception ignored in")
@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
def test_the_step_before_a_damaged_one_is_used_loudly(harm, stage, states, caplog):
    harm(stage / "checkpoints" / "16")
    checkpoints = Checkpoints(stage, every=1)
    step, parts = checkpoints.restore(WANTED)
    assert step == 15
    jax.tree.map(np.testing.assert_array_equal, parts, states[0])
    assert "checkpoints/16 is damaged: " in caplog.text
    assert "goes back to step 15, which is whole" in caplog.text
    assert (stage / "damaged" / "16").is_dir()
    checkpoints.save(16, states[1])  # training does the lost steps again
    checkpoints.close()
    assert Checkpoints(stage, every=1).restore(WANTED)[0] == 16


@pytest.mark.parametrize("step", ["17", "60"])
def test_a_checkpoint_in_the_place_of_another_step_is_not_taken_for_it(step, stage, caplog):
    shutil.copytree(stage / "checkpoints" / "15", stage / "checkpoints" / step)
    assert Checkpoints(stage, every=1).restore(WANTED)[0] == 16
    assert f"checkpoints/{step} is damaged: it was saved as step 15" in caplog.text


@pytest.mark.filterwarnings("ignore:Exception ignored in")
def test_a_damaged_model_is_refused_with_what_to_do(stage):
    cut(stage / "checkpoints" / "16")
    with pytest.raises(Damaged, match=r"16 is damaged.*Delete .*stage and start"):
        load_model(stage)


@pytest.mark.parametrize("content", ["", f"{'0' * 64}  other\n"])
def test_sums_that_do_not_name_what_is_loaded_are_damaged(content, stage):
    (stage / "SHA256SUMS").write_text(content)
    with pytest.raises(Damaged, match=r"SHA256SUMS is damaged: it does not name model\.json"):
        load_model(stage)


def test_a_stage_without_a_whole_checkpoint_is_refused_and_left_as_it_is(stage):
    for step in ("15", "16"):
        flip_a_bit(stage / "checkpoints" / step)
    with pytest.raises(Damaged, match=r"no checkpoint is whole; delete .*16 is dam.*15 is dam"):
        Checkpoints(stage, every=1).restore(WANTED)
    assert sorted(path.name for path in (stage / "checkpoints").iterdir()) == ["15", "16"]


def test_a_checkpoint_of_an_earlier_version_has_no_checksums_and_loads(stage, states, caplog):
    metadata = stage / "checkpoints" / "16" / "_CHECKPOINT_METADATA"
    metadata.write_text(metadata.read_text().replace('"checksums"', '"other"'))
    step, parts = Checkpoints(stage, every=1).restore(WANTED)
    assert step == 16 and "16 has no checksums" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, parts, states[1])


def test_weights_of_an_earlier_version_that_are_not_finite_are_damaged(states, tmp_path):
    params = jax.tree.map(lambda leaf: leaf.at[0].set(np.nan), states[0]["params"])
    ocp.save_checkpointables(tmp_path / "7", {"params": params})
    with pytest.raises(Damaged, match=r"7 is damaged: params/\S+ \(float32\) holds values"):
        integrity.load(tmp_path / "7", WANTED)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_not_saved(value, states, tmp_path):
    parts = {**states[0], "params": jax.tree.map(lambda leaf: leaf + value, states[0]["params"])}
    checkpoints = Checkpoints(tmp_path, every=1)
    with pytest.raises(
        FloatingPointError, match=r"after the update params/embed/embedding.* not saved"
    ):
        checkpoints.save(3, parts)
    assert checkpoints.steps() == []


def test_two_checkpoints_are_kept_until_the_stage_is_done(states, tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    for step in (1, 2, 3):
        checkpoints.save(step, states[0])
        checkpoints.wait()
    assert checkpoints.steps() == [3, 2]
    checkpoints.save(4, {"params": states[0]["params"]}, final=True)
    assert checkpoints.steps() == [4, 3]
    checkpoints.trim()
    assert checkpoints.steps() == [4]
    step, parts = checkpoints.restore(WANTED)
    assert step == 4 and parts.keys() == {"params"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "stored"])
def test_no_random_damage_of_a_models_arrays_is_loaded(dtype, stage):
    """Sixty damages: a flipped bit or eight random bytes."""
    file = max(data_files(stage / "checkpoints" / "16"), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    expected = load_model(stage, param_dtype=dtype).params
    chance = random.Random(dtype)
    refused = 0
    for number in range(15):
        content, place = bytearray(whole), chance.randrange(len(whole) - 8)
        if number % 2:
            content[place] ^= 1 << chance.randrange(8)
        else:
            content[place : place + 8] = chance.randbytes(8)
        file.write_bytes(content)
        try:
            found = load_model(stage, param_dtype=dtype).params
        except Damaged:
            refused += 1
        else:  # bytes that only the optimizer's arrays or nothing depend on
            jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert refused >= 10


@pytest.mark.parametrize("name", ["model.json", "tokenizer/tokenizer.model"])
def test_a_changed_byte_beside_the_weights_is_found(name, stage):
    content = bytearray((stage / name).read_bytes())
    content[-20] ^= 1
    (stage / name).write_bytes(content)
    with pytest.raises(Damaged, match=rf"{name} is damaged"):
        load_model(stage)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path, tokenizer):
    params = random_params(CONFIG, SINGLE, 0)
    params["norm"]["scale"] = params["norm"]["scale"].at[3].set(value)
    with pytest.raises(FloatingPointError, match="params/norm/scale"):
        save_model(tmp_path, Model(CONFIG, EXECUTION, params, tokenizer, "short"))
    with pytest.raises(ValueError, match=r"here: norm/scale \(float32\) holds values"):
        integrity.check_finite(params, "here")


# Failures that say nothing about what is stored: as raised by the system, JAX, Orbax' barrier.
FAILURES = [
    (TimeoutError(110, "Connection timed out"), StorageFailed, "cannot be read: .*timed out"),
    (OSError(24, "Too many open files"), StorageFailed, "cannot be read: .*open files"),
    (OSError(5, "Input/output error"), StorageFailed, "cannot be read: Input/output error"),
    (PermissionError(13, "Permission denied"), StorageFailed, "cannot be read: .*denied"),
    (
        ValueError("PERMISSION_DENIED: local file"),
        StorageFailed,
        "cannot be read: PERMISSION_DENIED",
    ),
    (MemoryError("host memory"), MemoryError, "host memory"),
    (ValueError("Timeout waiting at barrier x"), StorageFailed, "was not read by all hosts"),
]


@pytest.mark.parametrize("error, kind, message", FAILURES)
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(
    error, kind, message, stage, monkeypatch
):
    def fail(*_):
        raise error

    monkeypatch.setattr(ocp, "load_checkpointables", fail)
    with pytest.raises(kind, match=message):
        Checkpoints(stage, every=1).restore(WANTED)
    assert not (stage / "damaged").exists()
    assert sorted(path.name for path in (stage / "checkpoints").iterdir()) == ["15", "16"]
