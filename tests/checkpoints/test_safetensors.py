"""Files interchange with those of the safetensors package; broken files are named."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from qalign_jax.checkpoints.safetensors import TensorFiles, write_files


def values(dtype):
    random = np.random.default_rng(0)
    shapes = {"a": (3, 5), "b": (7,), "c": (2, 2), "d": (40,)}
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write(path, tensors, shard_bytes=10**9):
    shapes = {name: value.shape for name, value in tensors.items()}
    dtype = next(iter(tensors.values())).dtype
    return write_files(path, iter(tensors.items()), shapes, dtype, shard_bytes)


def assert_equal(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", jnp.bfloat16])
def test_what_is_written_the_package_reads_and_the_other_way_round(dtype, tmp_path):
    tensors = values(dtype)
    size = write(tmp_path, tensors)
    assert size == sum(value.nbytes for value in tensors.values())
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        for name, value in tensors.items():
            assert_equal(file.get_tensor(name), value)
    other = tmp_path / "other"
    other.mkdir()
    safetensors.numpy.save_file(tensors, other / "model.safetensors")
    files = TensorFiles(other)
    for name, value in tensors.items():
        assert_equal(files.read(name), value)


def test_no_file_is_larger_than_asked_but_for_a_tensor_that_is(tmp_path):
    tensors = values("float32")
    write(tmp_path, tensors, shard_bytes=100)  # a 60, b 28 | c 16 | d 160
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 60 + 28 + 16 + 160
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index["weight_map"] == dict(
        zip("abcd", [names[0], names[0], names[1], names[2]], strict=True)
    )
    assert not (tmp_path / "model.safetensors").exists()
    files = TensorFiles(tmp_path)
    assert list(files.entries) == list("abcd")
    for name, value in tensors.items():
        assert_equal(files.read(name), value)


def test_a_header_in_another_order_than_the_values_is_read_right(tmp_path):
    header = {
        "late": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "early": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    content = np.array([1, 2, 3], np.float32).tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)
    files = TensorFiles(tmp_path)
    assert list(files.entries) == ["early", "late"]  # in the order of the values
    assert files.read("early") == 1 and files.read("late").tolist() == [2, 3]


def test_fingerprints_change_with_any_tensor_and_not_with_the_files(tmp_path):
    tensors = values("float32")
    folders = [tmp_path / name for name in ("one", "many", "changed")]
    for folder in folders:
        folder.mkdir()
    write(folders[0], tensors)
    write(folders[1], tensors, shard_bytes=100)
    tensors["d"][21] += 1
    write(folders[2], tensors)
    one, many, changed = (TensorFiles(folder).fingerprint() for folder in folders)
    assert one == many != changed


def cut(folder, file, size):
    path = folder / file
    path.write_bytes(path.read_bytes()[:size])


def test_a_file_that_ends_too_early_is_named_with_its_tensor(tmp_path):
    write(tmp_path, values("float32"), shard_bytes=100)
    file = tmp_path / "model-00003-of-00003.safetensors"
    cut(tmp_path, file.name, file.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"00003-of-00003\.safetensors.* inside the tensor d "):
        TensorFiles(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 30])
def test_a_file_cut_in_its_header_is_named(size, tmp_path):
    write(tmp_path, values("float32"))
    cut(tmp_path, "model.safetensors", size)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        TensorFiles(tmp_path)


def test_a_git_lfs_pointer_is_told_from_a_model(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match="Git LFS"):
        TensorFiles(tmp_path)


def test_an_index_with_missing_tensors_or_files_is_named(tmp_path):
    write(tmp_path, values("float32"), shard_bytes=100)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    moved = content | {"weight_map": content["weight_map"] | {"c": content["weight_map"]["a"]}}
    index.write_text(json.dumps(moved))
    with pytest.raises(ValueError, match="the tensor c is not in model-00001"):
        TensorFiles(tmp_path)
    index.write_text(json.dumps(content))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002.*cannot be read \(No such file"):
        TensorFiles(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="no index of safetensors"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "the tensor b overlaps another"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, "entry of b is malformed"),
        ({"dtype": ["F32"], "shape": [1], "data_offsets": [4, 8]}, "entry of b is malformed"),
        ({"dtype": "F32", "shape": [1], "data_offsets": ["4", "8"]}, "entry of b is malformed"),
        (
            {"dtype": "F32", "shape": [2], "data_offsets": [4, 8]},
            "b has 4 bytes, its shape",
        ),
        ({"dtype": "F32"}, "entry of b is malformed"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(entry, message, tmp_path):
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": entry}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match=message):
        TensorFiles(tmp_path)


# Bytes that are put into a whole file or taken out of it, by where.
SHIFTS = {
    "a byte behind the last tensor": lambda content: content + b"\0",
    "a file behind the file": lambda content: content * 2,
    "a byte between header and values": lambda content: content[:-264] + b"\0" + content[-264:],
    "a byte inside a tensor": lambda content: content[:-9] + b"\0" + content[-9:],
    "a byte less": lambda content: content[:-1],
    "a value less in front": lambda content: content[:-264] + content[-260:],
}


@pytest.mark.parametrize("case", SHIFTS)
def test_a_file_with_bytes_of_no_tensor_is_refused_as_the_official_library_does(case, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = values("float32")
    write(tmp_path, tensors)
    assert sum(value.nbytes for value in tensors.values()) == 264
    path.write_bytes(SHIFTS[case](path.read_bytes()))
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(path, "numpy")
    with pytest.raises(ValueError, match=r"model\.safetensors: .*download it again"):
        TensorFiles(tmp_path)


def test_a_header_that_leaves_bytes_between_tensors_is_refused(tmp_path):
    header = {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    with pytest.raises(ValueError, match="bytes of no tensor before the tensor b"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize("size", [2**63 - 1, 2**64 - 1, 2**40])
def test_a_header_that_lies_about_its_size_takes_no_memory(size, tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(size.to_bytes(8, "little"))
        file.truncate(2**41)  # a hole: large enough for the last of the sizes
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        TensorFiles(tmp_path)


def test_a_quantised_tensor_is_refused(tmp_path):
    safetensors.numpy.save_file({"q": np.zeros(3, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"the tensor q is I8.*unquantised"):
        TensorFiles(tmp_path)


def test_writing_other_tensors_than_announced_stops(tmp_path):
    with pytest.raises(AssertionError, match="where a was to come"):
        write_files(tmp_path, [("b", np.zeros(2, np.float32))], {"a": (2,)}, np.dtype("f4"), 99)


def test_epath_folders_are_taken(tmp_path):
    write(epath.Path(tmp_path), values("float32"))
    assert len(TensorFiles(str(tmp_path)).entries) == 4
