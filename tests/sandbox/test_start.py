"""Where no sandbox starts, the error says what to install or allow; none outlives the host."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from qalign_jax.sandbox.bubblewrap import make_command
from qalign_jax.sandbox.limits import Limits
from qalign_jax.sandbox.pool import Sandbox
from qalign_jax.sandbox.process import Process

DOCKER = (
    "bwrap: No permissions to create new namespace, likely because the kernel does not allow "
    "non-privileged user namespaces. See <https://deb.li/bubblewrap> or "
    "<file:///usr/share/doc/bubblewrap/README.Debian.gz>."
)

pytestmark = pytest.mark.usefixtures("bubblewrap")


def test_a_missing_bubblewrap_is_named_with_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"\(bwrap\) is not on PATH.*apt-get install bubblewrap"):
        Sandbox()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (DOCKER, "--security-opt seccomp=unconfined"),
        ("bwrap: Creating new namespace failed: Operation not permitted", "seccomp=unconfined"),
        (
            "bwrap: setting up uid map: Permission denied",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            "bwrap: Creating new namespace failed: nesting depth or "
            "/proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
            "user.max_user_namespaces",
        ),
        ("bwrap: Failed to make / slave: Permission denied", "apparmor=unconfined"),
        ("bwrap: Unknown option --as-pid-1", "install bubblewrap 0.8 or newer"),
        ("bwrap: something new", ""),
    ],
)
def test_what_bwrap_says_is_told_with_what_to_allow(words, advice, monkeypatch, tmp_path):
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError) as error:
        Sandbox()
    assert f"bwrap said: {words}" in str(error.value)
    assert advice in str(error.value)


def test_a_bwrap_that_runs_something_else_is_refused(monkeypatch, tmp_path):
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\nwhile read line; do echo '\"ready\"'; done\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"does not run print\(6 \* 7\) to 42"):
        Sandbox()


def test_a_bwrap_that_is_no_program_is_refused(monkeypatch, tmp_path):
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("no program")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="bwrap cannot be executed: Exec format error"):
        Sandbox(1)


def test_limits_too_small_for_any_program_are_refused():
    with pytest.raises(ValueError, match=r"not run print\(6 \* 7\) to 42 in Limits\(.*memory_mb=8"):
        Sandbox(1, Limits(memory_mb=8))


def descendants(pid: int) -> list[int]:
    """The processes below one."""
    children = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        children += map(int, path.read_text().split())
    return children + [found for child in children for found in descendants(child)]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pids):
    until = time.monotonic() + 30
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < until, left
        time.sleep(0.05)


HOST = """
import sys
from qalign_jax.sandbox.pool import Sandbox
sandbox = Sandbox(2)
with sandbox.session() as session:
    session.run("1")
    print("ready", flush=True)
    if sys.stdin.readline() == "close\\n":
        sandbox.close()
        print("closed", flush=True)
        sys.stdin.readline()
        print(session.run("1").status, flush=True)
"""


@pytest.mark.parametrize("ending", ["close", "exit", "SIGKILL"])
def test_no_sandbox_outlives_its_closing_or_the_host_s_process(ending):
    root = pathlib.Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as host:
        assert host.stdin and host.stdout
        assert host.stdout.readline() == b"ready\n"
        started = descendants(host.pid)
        assert len(started) >= 2  # bwrap and the interpreter in it
        if ending == "SIGKILL":
            host.send_signal(signal.SIGKILL)
        else:
            host.stdin.write(ending.encode() + b"\n")
            host.stdin.flush()
        if ending == "close":
            assert host.stdout.readline() == b"closed\n"
            wait_until_gone(started)
        with contextlib.suppress(BrokenPipeError):
            host.stdin.close()
        assert host.stdout.read() == (b"killed\n" if ending == "close" else b"")
        host.wait(60)
    wait_until_gone(started)


def test_a_closed_sandbox_runs_nothing():
    sandbox = Sandbox(1)
    sandbox.close()
    sandbox.close()
    with pytest.raises(RuntimeError, match="the sandbox is closed"):
        sandbox.run("1")


def test_a_process_that_is_killed_while_it_starts_leaves_none_behind():
    for wait in range(40):
        process = Process(make_command(), b"", 100)
        time.sleep(wait / 4000)  # bwrap takes some 10 ms
        found = descendants(process._process.pid)
        process.close()
        wait_until_gone(found)
