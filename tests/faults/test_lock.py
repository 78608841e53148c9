"""A lock has one owner, in files and in objects: real processes, killed ones too."""

import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from qalign_jax.faults import lock

# Holds the lock of its first argument until its stdin ends.
HOLDER = """
import sys
from absl import logging
from qalign_jax.faults import lock

logging.use_absl_handler()
logging.set_verbosity(logging.INFO)
lock.HEARTBEAT_S, lock.TAKEOVER_S = 0.1, float(sys.argv[2])
try:
    with lock.hold(sys.argv[1], "take another"):
        print("held", flush=True)
        sys.stdin.read()
except ValueError as error:
    sys.exit(f"error: {error}")
print("released", flush=True)
"""


class Holder:
    """A process that holds a lock, or has been refused."""

    def __init__(self, path, takeover_s=1.0, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, path, str(takeover_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def holds(self) -> bool:
        return self.process.stdout.readline() == "held\n"

    def end(self):
        """Lets the lock go; returns status and stderr."""
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stderr

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(params=["file", "object"])
def path(request, tmp_path):
    if request.param == "file":
        return str(tmp_path / "run" / "run.lock")
    request.getfixturevalue("storage")
    return "gs://bucket/run/run.lock"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lock, "TAKEOVER_S", 1.0)


def test_the_second_is_refused_and_told_who_the_first_is_and_what_to_do(path, short):
    first = Holder(path)
    assert first.holds()
    who = rf"run\.lock is held by process {first.process.pid} on {os.uname().nodename} \(since 20"
    with pytest.raises(ValueError, match=rf"{who}\d\d-.* UTC\); take another"):
        with lock.hold(path, "take another"):
            raise AssertionError
    assert first.end() == (0, "")
    with lock.hold(path, "take another"):
        pass


def test_a_lock_leaves_nothing_behind_after_its_end_or_an_error(tmp_path, storage):
    for path in (tmp_path / "run.lock", "gs://bucket/run.lock"):
        with contextlib.suppress(KeyError), lock.hold(path, ""):
            raise KeyError
        with lock.hold(path, ""):
            pass
    assert not list(tmp_path.iterdir()) and not storage.objects


def write_owner(storage, name="run.lock"):
    """The lock of a process of another machine, which writes no more."""
    owner = json.loads(lock._owner()) | {"host": "elsewhere", "process": 7, "boot": "other"}
    storage.put("bucket", name, json.dumps(owner).encode(), "text/plain")


@pytest.mark.parametrize("left", [False, True])
def test_of_many_at_once_one_holds_the_lock(left, path, short, request):
    start, inside, refused = threading.Barrier(8), [], threading.Semaphore(0)

    def contend():
        start.wait()
        try:
            with lock.hold(path, ""):
                inside.append(threading.get_ident())
                for _ in range(7):
                    assert refused.acquire(timeout=20)
        except ValueError:
            refused.release()

    for _ in range(2):
        inside.clear()
        if left and path.startswith("gs://"):
            write_owner(request.getfixturevalue("storage"), "run/run.lock")
        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(inside) == 1 and not refused.acquire(blocking=False)


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_over_at_once(path):
    first = Holder(path)
    assert first.holds()
    first.kill()
    began = time.monotonic()
    second = Holder(path, takeover_s=60.0)
    assert second.holds() and time.monotonic() - began < 20
    status, stderr = second.end()
    assert status == 0
    [line] = [line for line in stderr.splitlines() if "taken over" in line]
    assert f"taken over from process {first.process.pid} on" in line


def test_of_two_who_wait_for_a_dead_owner_elsewhere_one_takes_over(storage):
    write_owner(storage)
    began = time.monotonic()
    waiting = [Holder("gs://bucket/run.lock", takeover_s=2.0) for _ in range(2)]
    held = [each.holds() for each in waiting]
    assert sorted(held) == [False, True] and time.monotonic() - began >= 2
    ends = dict(zip(held, [each.end() for each in waiting], strict=True))
    assert ends[True][0] == 0 and "taken over from process 7 on elsewhere" in ends[True][1]
    assert "left or held by process 7 on elsewhere" in ends[True][1]
    assert (
        ends[False][0] == 1 and "error: gs://bucket/run.lock is held by process" in ends[False][1]
    )


def test_a_lock_that_moves_refuses_at_once_and_one_that_is_released_is_had(storage, monkeypatch):
    monkeypatch.setattr(lock, "TAKEOVER_S", 30.0)

    def after(seconds, action):
        timer = threading.Timer(seconds, action)
        timer.start()
        return timer

    write_owner(storage)
    began = time.monotonic()
    timer = after(0.3, lambda: write_owner(storage))
    with pytest.raises(ValueError, match="held by process 7 on elsewhere"):
        with lock.hold("gs://bucket/run.lock", ""):
            raise AssertionError
    timer.join()
    timer = after(0.3, lambda: storage.remove("bucket", "run.lock"))
    with lock.hold("gs://bucket/run.lock", ""):
        assert time.monotonic() - began < 10
    timer.join()


def test_a_process_whose_lock_was_taken_over_ends_with_one_line(storage):
    first = Holder("gs://bucket/run.lock")
    assert first.holds()
    write_owner(storage)
    assert first.process.wait(timeout=20) == 2
    lines = first.process.stderr.read().splitlines()
    assert [line for line in lines if "process 7 on elsewhere (since" in line] == lines[-1:]
    assert lines[-1].startswith("error: gs://bucket/run.lock: ") and "has taken over" in lines[-1]
    first.process.communicate()
    assert json.loads(storage.objects["bucket", "run.lock"].content)["process"] == 7


# urllib3 leaves the socket of a connection that was cut to the garbage collection
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lock_outlives_an_outage_and_answers_that_are_lost(storage, short, caplog):
    with lock.hold("gs://bucket/run.lock", ""):
        before = storage.objects["bucket", "run.lock"].generation
        with storage.failing(0.5, seed=1, kinds=("lost", "503")):
            time.sleep(2)
        storage.down = True
        time.sleep(0.5)
        storage.down = False
        time.sleep(0.5)
        assert storage.faults["lost"] > 1 and storage.faults["503"] > 1
        assert storage.objects["bucket", "run.lock"].generation > before + 5
    assert not storage.objects
    assert re.search(r"run\.lock: the object store fails \(503", caplog.text)
    caplog.clear()  # its records hold the errors, and those the sockets
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_held_a_lock_is_read_through_answers_that_are_cut_off(storage, monkeypatch, caplog):
    monkeypatch.setattr(lock, "TAKEOVER_S", 0.2)
    caplog.set_level("INFO", logger="absl")
    write_owner(storage)
    with storage.failing(0.4, seed=2, kinds=("cut download",)):
        with lock.hold("gs://bucket/run.lock", ""):
            pass
    assert storage.faults["cut download"] > 1
    assert "taken over from process 7 on elsewhere (since" in caplog.text
    caplog.clear()
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lock_whose_last_answer_was_lost_is_released(storage, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    with lock.hold("gs://bucket/run.lock", ""):
        with storage.failing(1.0, seed=0, kinds=("lost",)):
            while not storage.faults["lost"]:
                time.sleep(0.01)
    assert not storage.objects


def test_a_lock_of_this_machine_is_dead_only_if_its_process_is(tmp_path):
    mine = json.loads(lock._owner())
    ended = subprocess.Popen(["true"])
    ended.wait()
    cases = [
        (mine, False),
        (mine | {"started": "1"}, True),  # the number is another process' now
        (mine | {"process": ended.pid}, True),
        (mine | {"process": ended.pid, "boot": "other"}, False),
        (mine | {"process": ended.pid, "namespace": "pid:[1]"}, False),
        ({}, False),
    ]
    assert [lock._is_dead(json.dumps(owner).encode()) for owner, _ in cases] == [
        dead for _, dead in cases
    ]
    assert not lock._is_dead(b"") and not lock._is_dead(b"[")


def test_the_lock_goes_with_a_process_that_is_terminated(tmp_path):
    path = str(tmp_path / "run.lock")
    first = Holder(path)
    assert first.holds()
    first.process.send_signal(signal.SIGTERM)
    first.process.communicate()
    second = Holder(path)
    assert second.holds()
    second.end()
