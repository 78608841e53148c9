"""Two processes of which one is killed, hangs or fails: the other names it and ends in time."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from qalign_jax.parallel.barrier import HOST
from tests.parallel.test_hosts import coordinator, errors, finish, start

HANG_S = 2
# What one of two processes does between two collectives, the number of the one, and how it ends.
CASES = {
    "process 1 is killed": ("os.kill(os.getpid(), signal.SIGKILL)", 1, -signal.SIGKILL),
    "process 0 is killed": ("os.kill(os.getpid(), signal.SIGKILL)", 0, -signal.SIGKILL),
    "process 1 hangs": ("os.kill(os.getpid(), signal.SIGSTOP)", 1, -signal.SIGKILL),
    "process 0 hangs": ("os.kill(os.getpid(), signal.SIGSTOP)", 0, -signal.SIGKILL),
    "process 1 fails": ("raise ValueError('its disk is full')", 1, 2),
    "process 0 fails": ("raise RuntimeError('a bug')", 0, 1),
    "process 1 is terminated": ("os.kill(os.getpid(), signal.SIGTERM)", 1, 143),
}

# All processes are forks of one, which has imported; a fork that stops is killed after the other.
FORKS = """
import gc, json, os, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from qalign_jax import cli
from qalign_jax.parallel import barrier, hosts

def command(argv):
    hosts.initialize(address, 2, process, hang_timeout_s=HANG_S)
    for step in range(10**6):
        multihost_utils.broadcast_one_to_all(np.int32(step))
        if step == 20 and process == culprit:
            open(f"{folder}/since", "w").write(str(time.time()))
            exec(what)
        if what == "" and step == 40:
            return {"steps": step}
        barrier.wait(f"step {step}") if step % 20 == 10 else None

gc.freeze()
forks, ended = {}, {}
for folder, address, what, culprit in json.loads(sys.argv[1]):
    for process in range(2):
        if not (fork := os.fork()):
            os.dup2(os.open(f"{folder}/{process}.stdout", os.O_WRONLY | os.O_CREAT), 1)
            os.dup2(os.open(f"{folder}/{process}.stderr", os.O_WRONLY | os.O_CREAT), 2)
            sys.argv = ["run"]
            cli.main(command, lambda: None)
            sys.exit()
        forks[fork] = folder, process
while forks:
    fork, status = os.wait()
    folder, process = forks.pop(fork)
    ended.setdefault(folder, {})[process] = os.waitstatus_to_exitcode(status), time.time()
    for other, (where, _) in forks.items():
        if where == folder and "SIGSTOP" in open(f"{folder}/what").read():
            os.kill(other, signal.SIGKILL)
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Case -> of each process its status, stderr, and the seconds that it ended after the fault."""
    tmp, cases = tmp_path_factory.mktemp("missing"), []
    for name, (what, culprit, _) in (CASES | {"all is well": ("", 0, 0)}).items():
        folder = tmp / name
        folder.mkdir()
        (folder / "what").write_text(what)
        cases.append((str(folder), coordinator(), what, culprit))
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    forks = subprocess.run(
        [sys.executable, "-c", FORKS.replace("HANG_S", str(HANG_S)), json.dumps(cases)],
        env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert forks.returncode == 0, forks.stderr
    found = {}
    for folder, processes in json.loads(forks.stdout).items():
        where = tmp / os.path.basename(folder)
        since = float((where / "since").read_text())
        found[where.name] = [
            (status, (where / f"{number}.stderr").read_text(), when - since)
            for number, (status, when) in sorted(processes.items())
        ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_other_process_names_it_in_the_configured_time_and_ends_with_75(name, ended):
    what, culprit, its_status = CASES[name]
    status, stderr, seconds = ended[name][1 - culprit]
    assert ended[name][culprit][0] == its_status, ended[name][culprit][1]
    assert status == 75, stderr
    hangs = f"has not been heard of for {HANG_S} s"
    why = hangs if "SIGSTOP" in what else "has ended (its log says why)"
    line = f"error: process {culprit} on {HOST} {why}. Start all processes again to go on"
    assert stderr.splitlines()[-1] == line
    assert len(errors(stderr)) == 1 and "Traceback" not in stderr
    assert seconds < (HANG_S if "SIGSTOP" in what else 0) + 6


@pytest.mark.slow
def test_one_that_fails_by_itself_says_why(ended):
    assert errors(ended["process 1 fails"][1][1]) == ["error: its disk is full"]
    assert ended["process 0 fails"][0][1].splitlines()[-1] == "RuntimeError: a bug"
    stopped = ended["process 1 is terminated"][1][1]
    assert stopped.splitlines()[-1] == "terminated; run the same command again to go on"


@pytest.mark.slow
def test_two_that_end_well_are_not_missed(ended):
    for status, stderr, _ in ended["all is well"]:
        assert status == 0 and not errors(stderr), stderr


@pytest.mark.slow
def test_two_that_train_resume_after_one_is_killed_and_stop_together_at_a_signal_to_one(tmp_path):
    recipe, steps = tmp_path / "recipe.py", 60
    recipe.write_text(
        "import pathlib\n"
        "from tests.recipe.test_recipe import make_config\n"
        "def get_config():\n"
        f"    config = make_config(pathlib.Path({str(tmp_path)!r}), mesh='fsdp:2')\n"
        f"    config.base.steps, config.base.save_every = {steps}, 10\n"
        "    return config\n"
    )
    saved = tmp_path / "run" / "base" / "checkpoints"

    def run(until, number):
        """Both processes' status and stderr; process 1 gets the signal when `until` is saved."""
        command = ["-m", "qalign_jax.run", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
        command += ["--stages=vocabulary,base", f"--coordinator={coordinator()}", "--processes=2"]
        both = [start(*command, f"--process={i}", devices=1) for i in range(2)]
        while not (saved / str(until)).exists():
            assert both[1].poll() is None, finish(*both)
            time.sleep(0.01)
        both[1].send_signal(number)
        return [(status, stderr) for status, _, stderr in finish(*both, timeout=120)]

    (status, stderr), _ = run(10, signal.SIGKILL)
    assert status == 75 and f"process 1 on {HOST} has ended" in stderr.splitlines()[-1], stderr
    (status, stderr), (other, more) = run(30, signal.SIGTERM)
    assert status == other == 143 and "Traceback" not in stderr + more, stderr + more
    assert "base: 10 of 60 steps are there" in stderr or "base: 20 of 60 steps are there" in stderr
    last = max(int(path.name) for path in saved.iterdir())
    assert 30 <= last < steps and f"base: stopped; step {last} is saved" in stderr
    text = (tmp_path / "run" / "base" / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(1, last + 1))
