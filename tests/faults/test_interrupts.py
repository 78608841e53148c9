"""Signals end real commands: in time, with one line, and with a status of their own."""

import signal
import subprocess
import sys
import time

import pytest

from tests.commands import run_commands

# A command that signals itself, in a thread as it works: `signals` are (seconds, number).
COMMAND = """
import gc, hashlib, os, signal, sys, threading, time
from qalign_jax import cli
from qalign_jax.faults import interrupts

sys.argv = ["command"]
signals, grace, what = SIGNALS, GRACE, WHAT

def send():
    began = time.monotonic()
    for after, number in signals:
        time.sleep(max(0, began + after - time.monotonic()))
        with open("sent", "a") as file:
            print(time.time(), file=file)
        os.kill(os.getpid(), number)
    time.sleep(10)
    os._exit(99)  # it went on

def in_c(seconds=60):
    hashlib.pbkdf2_hmac("sha256", b"a", b"a", int(seconds * 10**6))

def command(argv):
    threading.Thread(target=send, daemon=True).start()
    interrupts.GRACE_S[signal.SIGTERM] = grace
    exec(what)

cli.main(command, lambda: None)
"""
IN_C = "in_c()"
# as JAX has a callback, in which an exception is lost
IN_A_COLLECTION = """
gc.callbacks.append(lambda phase, info: time.sleep(1) if phase == "start" else None)
for _ in range(100): gc.collect()
"""
WRITES = """
try:
    time.sleep(60)
finally:
    time.sleep(0.3)
    open("answers", "w").write("kept")
"""
DEFERS = """
with interrupts.Deferred() as stop:
    stop.begin()
    while not stop.asked: time.sleep(0.01)
    time.sleep(3)  # the running step, longer than the grace of a signal that is not deferred
    open("saved", "w").write(f"{stop.signal:d}")
raise SystemExit(128 + stop.signal)
"""
TWICE = """
with interrupts.Deferred() as stop:
    stop.begin()
    in_c()
"""
INT, TERM = int(signal.SIGINT), int(signal.SIGTERM)
CASES = {
    "in C, SIGINT": ([(0.3, INT)], 20, IN_C, 130),
    "in C, SIGTERM": ([(0.3, TERM)], 1, IN_C, 143),
    "in a collection, SIGINT": ([(0.3, INT)], 20, IN_A_COLLECTION, 130),
    "in Python, SIGINT": ([(0.3, INT)], 20, WRITES, 130),
    "in Python, SIGTERM": ([(0.3, TERM), (0.4, TERM)], 20, WRITES, 143),
    "deferred, SIGINT": ([(0.3, INT)], 1, DEFERS, 130),
    "deferred, SIGTERM": ([(0.3, TERM), (0.6, TERM)], 1, DEFERS, 143),
    "deferred twice, SIGINT": ([(0.3, INT), (0.6, INT)], 20, TWICE, 130),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    cases = {}
    for name, (signals, grace, what, _) in CASES.items():
        code = COMMAND.replace("SIGNALS", repr(signals)).replace("GRACE,", f"{grace},")
        cases["-c", code.replace("WHAT", repr(what))] = name
    found = run_commands(list(cases), tmp_path_factory.mktemp("interrupts"))
    return {cases[case]: how for case, how in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_signal_ends_a_command_with_one_line_and_its_status(name, ended):
    status, stdout, stderr, folder = ended[name]
    assert status == CASES[name][-1], stderr
    assert stdout == ""
    if name.startswith("deferred, "):
        assert (folder / "saved").read_text() == str(status - 128)
        assert stderr.count("stopping after this step") == 1
    else:
        word = "interrupted" if status == 130 else "terminated"
        assert stderr.splitlines()[-1] == f"{word}; run the same command again to go on"
    if "collection" not in name:  # where Python tells of the exception that it ignores
        assert "Traceback" not in stderr
    if "in Python" in name:
        assert (folder / "answers").read_text() == "kept"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("deferred, ")])
def test_it_ends_within_three_seconds_whatever_the_main_thread_does(name, ended):
    folder = ended[name].folder
    sent = float((folder / "sent").read_text().split()[-1])
    assert (folder.parent / f"{folder.name}.stderr").stat().st_mtime - sent < 3


@pytest.mark.slow
def test_ctrl_c_ends_fits_in_the_middle_of_a_compilation(tmp_path):
    pytest.importorskip("libtpu")
    process = subprocess.Popen(
        [sys.executable, "-m", "qalign_jax.fits", "--config=configs/math_cot.py:llama2_7b",
         "--topology=v5e-16", "--stages=question_alignment"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.stderr
    for line in process.stderr:
        if "compiling the training step" in line:
            break
    time.sleep(4)  # it is traced and lowered in two
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 3
    assert stdout == "" and stderr == "interrupted; run the same command again to go on\n"
