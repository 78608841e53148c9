"""A folder's SHA256SUMS finds every kind of damage, and is what sha256sum itself reads."""

import subprocess

import pytest

from qalign_jax.faults.checksums import SUMS, Damaged, check_sums, write_sums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 9000)
    (tmp_path / "below" / "ü b.txt").write_text("text")
    write_sums(tmp_path)
    return tmp_path


def test_sums_are_those_of_the_command_sha256sum(folder):
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("OK") == 2
    assert check_sums(folder)


def test_a_folder_without_sums_is_told_apart(tmp_path):
    assert not check_sums(tmp_path)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["a.bin", "below/ü b.txt", SUMS])
@pytest.mark.parametrize(
    "harm", [flip, lambda path: path.write_bytes(path.read_bytes()[:-1])], ids=["flip", "cut"]
)
def test_a_changed_byte_or_a_lost_one_is_found_in_every_file(folder, name, harm):
    harm(folder / name)
    with pytest.raises(Damaged, match=r"is damaged|missing"):
        check_sums(folder)


def test_a_missing_file_is_found(folder):
    (folder / "a.bin").unlink()
    with pytest.raises(Damaged, match=r"names a file that is missing .*a\.bin"):
        check_sums(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_sums_name_no_file_outside_of_their_folder(folder, name):
    (folder / SUMS).write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(Damaged, match="not lines of SHA-256 and name"):
        check_sums(folder)
