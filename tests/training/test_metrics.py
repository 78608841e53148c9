"""metrics.jsonl keeps every row, whenever its process is killed."""

import json
import os
import struct
import subprocess
import sys

import pytest
from tensorboardX.proto import event_pb2

from qalign_jax.training.metrics import MetricWriter

# Forks processes that start again at step 40 of 60, as often as they can, and kills each a little
# later: 2 ms pass behind every call that opens or renames a file, so that kills fall there.
# Prints the file as each of them left it.
KILLS = """
import builtins, io, json, os, pathlib, signal, sys, time
from qalign_jax.training.metrics import MetricWriter

file = pathlib.Path(sys.argv[1]) / "metrics.jsonl"

def widened(call):
    def slower(*arguments, **options):
        result = call(*arguments, **options)
        time.sleep(2e-3)
        return result
    return slower

def start_again():
    MetricWriter(file.parent, 60)  # JAX starts
    os.write(ready, b"!")
    builtins.open = io.open = widened(open)
    os.replace = widened(os.replace)
    while True:
        MetricWriter(file.parent, 40)
        with file.open("a") as appended:
            appended.write('{"step": 41}\\n{"step": 42}\\n{"st')

left, whole = [], file.read_text()
for number in range(25):
    file.write_text(whole)
    started, ready = os.pipe()
    if not (child := os.fork()):
        start_again()
    os.read(started, 1)
    time.sleep(0.005 + 0.0013 * number)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left.append(file.read_text())
print(json.dumps(left))
"""


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in range(1, 61):
        writer.write({"step": step, "loss": 1 / step, "mfu": None})
    writer.close()
    return tmp_path


def test_a_kill_at_any_moment_of_a_resume_loses_no_row(folder):
    expected = rows(folder)[:40]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLS, folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    assert len(left) == 25 and len(set(left)) > 1
    for text in left:
        *lines, _ = text.split("\n")  # behind the last newline a row may be cut off
        assert [row for row in map(json.loads, lines) if row["step"] <= 40] == expected
    writer = MetricWriter(folder, 40)
    writer.write({"step": 41, "loss": 0.5})
    writer.close()
    assert rows(folder) == [*expected, {"step": 41, "loss": 0.5}]


def test_the_file_is_left_alone_where_no_row_is_dropped(folder):
    before = os.stat(folder / "metrics.jsonl")
    MetricWriter(folder, 60).close()
    after = os.stat(folder / "metrics.jsonl")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(rows(folder)) == 60
    MetricWriter(folder, 59).close()
    assert len(rows(folder)) == 59


def test_tensorboard_is_told_at_which_step_a_resumed_start_begins(folder):
    (first,) = (folder / "tensorboard").iterdir()
    first = first.rename(folder / "first")  # both are named after the second
    writer = MetricWriter(folder, 40)
    writer.write({"step": 41, "loss": 7.0, "mfu": None})
    writer.close()
    (second,) = (folder / "tensorboard").iterdir()
    assert [(e.step, scalars(e)) for e in events(first)[1:]] == [
        (step, {"loss": pytest.approx(1 / step)}) for step in range(1, 61)
    ]
    _, start, last = events(second)
    assert (start.step, start.session_log.status) == (41, event_pb2.SessionLog.START)
    assert (last.step, scalars(last)) == (41, {"loss": 7.0})


def events(path):
    """The events of a file of TensorBoard's: length, its checksum, event, its checksum."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("Q", content[:8])
        found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def scalars(event):
    return {value.tag: value.simple_value for value in event.summary.value}
