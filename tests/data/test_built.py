"""Folders built once: damage is noticed and mended, builders that die leave nothing, none mixes."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from qalign_jax.data import built, packing
from qalign_jax.data.examples import load_examples
from qalign_jax.faults.checksums import SUMS
from tests.files import write_jsonl


@pytest.fixture
def source(tmp_path):
    rows = [{"instruction": f"{i} + 1?", "response": f"The answer is {i + 1}."} for i in range(9)]
    return {"name": "jsonl", "path": str(write_jsonl(tmp_path / "own.jsonl", rows))}


def pack(folder, tokenizer, source):
    return packing.build({"own": source}, tokenizer, "short", 64, folder / "cache", 0)


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def flip(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


DAMAGES = {
    "a flipped bit": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "gone": os.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
FILES = [
    *(f"{name}.npy" for name in packing.ARRAYS),
    *("row_starts.npy", "row_examples.npy", "ids.txt", "stats.json", "made_from.json", SUMS),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_packed_cache_of_which_any_file_is_damaged_is_built_again(
    damage, tmp_path, tokenizer, source, caplog
):
    packed = pack(tmp_path, tokenizer, source)
    before = content(packed.directory)
    assert sorted(before) == sorted(FILES)
    for name in FILES:
        DAMAGES[damage](packed.directory / name)
        caplog.clear()
        again = pack(tmp_path, tokenizer, source)
        assert content(again.directory) == before, name
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert str(packed.directory) in warning and "It is built again" in warning
        if name != SUMS:
            assert name in warning or "names 10" in warning
        assert list((tmp_path / "cache" / "packed").iterdir()) == [packed.directory]


def test_a_cache_with_a_file_too_many_or_checksums_cut_at_a_line_is_built_again(
    tmp_path, tokenizer, source
):
    packed = pack(tmp_path, tokenizer, source)
    before = content(packed.directory)
    (packed.directory / "more.npy").write_bytes(b"")
    pack(tmp_path, tokenizer, source)
    assert content(packed.directory) == before
    lines = (packed.directory / SUMS).read_text().splitlines(keepends=True)
    (packed.directory / SUMS).write_text("".join(lines[:-1]))
    pack(tmp_path, tokenizer, source)
    assert content(packed.directory) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_data_set_of_which_any_file_is_damaged_is_built_again(damage, tmp_path, source, caplog):
    expected = list(load_examples(source, tmp_path / "sets"))
    (folder,) = (tmp_path / "sets" / "jsonl").iterdir()
    names = content(folder)
    assert len(expected) == 9 and any("array_record" in name for name in names)
    for name in names:
        DAMAGES[damage](folder / name)
        caplog.clear()
        assert list(load_examples(source, tmp_path / "sets")) == expected
        assert "It is built again" in caplog.text, name
        assert sorted(content(folder)) == sorted(names)


def test_a_changed_source_is_another_cache_and_the_old_one_stays(tmp_path, tokenizer, source):
    before = pack(tmp_path, tokenizer, source)
    old, tokens = content(before.directory), np.array(before.tokens)
    write_jsonl(tmp_path / "own.jsonl", [{"instruction": "2 + 2?", "response": "4"}])
    after = pack(tmp_path, tokenizer, source)
    assert after.fingerprint != before.fingerprint and after.stats["examples"] == 1
    assert content(before.directory) == old
    np.testing.assert_array_equal(before.tokens, tokens)


def test_a_process_checks_a_folder_once_until_it_changes(tmp_path):
    folder = tmp_path / "final"
    built.ensure(folder, lambda aside: (aside / "a").write_text("a"))
    built.ensure(folder, pytest.fail)
    checks = built._check.cache_info().misses
    for _ in range(3):
        built.ensure(folder, pytest.fail)
    assert built._check.cache_info().misses == checks
    os.utime(folder / "a", ns=(1, 1))
    built.ensure(folder, pytest.fail)
    assert built._check.cache_info().misses == checks + 1


def test_ids_that_cannot_be_read_do_not_hide_why_they_were_asked_for(tmp_path, tokenizer, source):
    packed = pack(tmp_path, tokenizer, source)
    assert packed.row_examples(0)[0].startswith("own/")
    for damage in (lambda path: path.write_bytes(b"\xff\n"), os.unlink):
        damage(packed.directory / "ids.txt")
        assert packed.row_examples(0) == ["row 0, whose ids cannot be read"]


# Builds argv[1] from argv[3] lines, one each argv[2] s; says when it begins and when it has ended.
BUILDER = """
import pathlib, sys, time
from qalign_jax.data import built

def write(folder):
    print("begins", flush=True)
    for number in range(int(sys.argv[3])):
        with open(folder / "lines", "a") as file:
            print(number, file=file, flush=True)
        time.sleep(float(sys.argv[2]))

built.ensure(pathlib.Path(sys.argv[1]), write)
print("ended", flush=True)
"""


def start(final, seconds, lines=3):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, final, f"{seconds}", f"{lines}"],
        stdout=subprocess.PIPE,
        text=True,
    )


def end(builder):
    """The exit status; closes the pipe."""
    builder.communicate()
    return builder.returncode


def test_builders_that_are_killed_leave_nothing_behind_the_next_build(tmp_path):
    for number in range(8):
        builder = start(tmp_path / f"final{number % 2}", 60)
        assert builder.stdout.readline() == "begins\n"
        builder.send_signal(signal.SIGKILL)
        end(builder)
    assert any(path.name.startswith(".building-") for path in tmp_path.iterdir())
    assert end(start(tmp_path / "final0", 0)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["final0"]
    assert (tmp_path / "final0" / "lines").read_text() == "0\n1\n2\n"


def test_a_builder_that_lives_is_waited_for_and_is_not_disturbed_by_others(tmp_path):
    slow = start(tmp_path / "one", 0.1)
    assert slow.stdout.readline() == "begins\n"
    slow.send_signal(signal.SIGSTOP)
    other = start(tmp_path / "two", 0)
    waiting = [start(tmp_path / "one", 0) for _ in range(2)]
    assert end(other) == 0
    assert (tmp_path / ".building-one").exists()
    slow.send_signal(signal.SIGCONT)
    assert end(slow) == 0
    for builder in waiting:
        assert builder.communicate()[0] == "ended\n"  # it has not built
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert (tmp_path / "one" / "lines").read_text() == "0\n1\n2\n"


def test_many_builders_that_start_together_and_are_killed_give_one_whole_folder(tmp_path):
    final = tmp_path / "final"
    for round in range(4):
        builders = [start(final, 0.02, 5) for _ in range(4)]
        if round < 3:
            time.sleep(0.4 + 0.1 * round)
            for builder in builders[:2]:
                builder.kill()
        for builder in builders:
            end(builder)
        assert [path.name for path in tmp_path.iterdir()] == ["final"]
        assert (final / "lines").read_text() == "0\n1\n2\n3\n4\n"
        shutil.rmtree(final)


def test_leftovers_of_earlier_versions_go_when_they_are_a_day_old(tmp_path):
    final = tmp_path / "sets" / "jsonl" / "final"
    old, new = tmp_path / "sets" / ".building-aa", tmp_path / "sets" / "jsonl" / ".building-bb"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    os.utime(old, (1, 1))
    built.ensure(final, lambda aside: (aside / "a").touch())
    assert not old.exists() and new.exists()
