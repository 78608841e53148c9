"""Who is missing at a meeting is named, whether it never came, has ended or is elsewhere."""

import socket
import threading
import time

import pytest

from qalign_jax.parallel.meetings import HOST, Chair, Member, MissingProcess


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(*functions):
    """What each returns or raises, run at once in threads."""
    results = [None] * len(functions)

    def run(index):
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=[index]) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def join(port, processes, timeout_s=10):
    """Process 0 and all others, after their first meeting."""
    return together(
        lambda: Chair(port, processes, timeout_s),
        *(lambda n=n: Member(("localhost", port), n, timeout_s) for n in range(1, processes)),
    )


def test_nobody_goes_on_before_all_are_there(port):
    chair, *members = join(port, 3)
    times = {}

    def late(process, meeting):
        time.sleep(0.2 * process)
        meeting.meet("next", 10)
        times[process] = time.monotonic()

    began = time.monotonic()
    together(*(lambda n=n, m=m: late(n, m) for n, m in enumerate([chair, *members])))
    assert len(times) == 3 and min(times.values()) - began >= 0.4


def test_those_that_never_start_are_named_to_all_that_do(port):
    outcomes = together(lambda: Chair(port, 4, 2.5), lambda: Member(("localhost", port), 2, 2.5))
    for outcome in outcomes:
        assert isinstance(outcome, MissingProcess)
        assert str(outcome) == "not all are at 'start': process 1, process 3 did not come in 2.5 s"


def test_without_process_0_its_address_is_named(port):
    with pytest.raises(MissingProcess, match=rf"process 0 at localhost:{port} did not come in 1 s"):
        Member(("localhost", port), 1, 1.0)


def test_one_that_ended_is_named_with_its_host_at_once(port):
    chair, first, second = join(port, 3)
    second._line.close()  # as the system does for a process that ends
    began = time.monotonic()
    outcomes = together(lambda: chair.meet("next", 60), lambda: first.meet("next", 60))
    assert [str(outcome) for outcome in outcomes] == [
        f"not all are at 'next': process 2 on {HOST} ended before (see the log there)"
    ] * 2
    assert time.monotonic() - began < 5


def test_one_that_came_and_ended_before_the_last_is_named(port):
    chair, first, second = join(port, 3)
    second._line.send([2, HOST, "next"])
    second._line.close()
    outcomes = together(lambda: first.meet("next", 60), lambda: chair.meet("next", 60))
    assert all(f"process 2 on {HOST} ended" in str(outcome) for outcome in outcomes)


def test_one_that_is_late_is_named_with_its_host(port):
    chair, _, second = join(port, 3)
    outcomes = together(lambda: chair.meet("next", 0.5), lambda: second.meet("next", 0.5))
    for outcome in outcomes:
        assert str(outcome) == f"not all are at 'next': process 1 on {HOST} did not come in 0.5 s"


def test_processes_that_are_at_different_meetings_are_told(port):
    chair, member = join(port, 2)
    outcomes = together(lambda: chair.meet("one", 10), lambda: member.meet("two", 10))
    for outcome in outcomes:
        assert str(outcome) == f"not all are at 'one': process 1 on {HOST} came to 'two'"


def test_when_process_0_ends_the_others_are_told(port):
    chair, member = join(port, 2)
    chair._lines[1].close()
    with pytest.raises(MissingProcess, match=rf"process 0 at localhost:{port} ended before"):
        member.meet("next", 60)


def test_strangers_on_the_port_are_passed_over(port):
    def stranger():
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"5\n", b'["a", "b"]\n', b"", b"[[], 0, 0]\n"):
            while True:
                try:
                    with socket.create_connection(("localhost", port), timeout=5) as line:
                        line.sendall(said)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)

    def member():
        time.sleep(0.5)
        return Member(("localhost", port), 1, 10)

    chair, _, second = together(lambda: Chair(port, 2, 10), stranger, member)
    assert together(lambda: chair.meet("next", 10), lambda: second.meet("next", 10)) == [None, None]


def test_a_number_that_comes_twice_or_is_too_high_is_refused(port):
    def member(number, seconds):
        time.sleep(seconds)
        return Member(("localhost", port), number, 10)

    chair, first, again, high, second = together(
        lambda: Chair(port, 3, 10),
        lambda: member(1, 0.3),
        lambda: member(1, 0.6),
        lambda: member(7, 0.6),
        lambda: member(2, 1.0),
    )
    assert str(again) == f"process 1 on {HOST} is there already"
    assert str(high) == f"process 0 on {HOST} waits for 2 others, none is 7"
    meetings = [lambda each=each: each.meet("next", 10) for each in (chair, first, second)]
    assert together(*meetings) == [None] * 3


def test_one_that_ended_before_the_start_may_be_started_again(port):
    def started_twice():
        time.sleep(0.3)
        with socket.create_connection(("localhost", port)) as line:
            line.sendall(b'[1, "there", "start"]\n')
        time.sleep(0.3)
        return Member(("localhost", port), 1, 10)

    def second():
        time.sleep(0.9)
        return Member(("localhost", port), 2, 10)

    everyone = together(lambda: Chair(port, 3, 10), started_twice, second)
    meetings = [lambda each=each: each.meet("next", 10) for each in everyone]
    assert together(*meetings) == [None] * 3


def test_a_taken_port_is_a_mistake():
    with socket.create_server(("", 0)) as other:
        with pytest.raises(ValueError, match=f"cannot listen on port {other.getsockname()[1]}"):
            Chair(other.getsockname()[1], 2, 1)


def test_processes_that_expect_other_numbers_of_them_do_not_meet(port):
    outcomes = together(
        lambda: Chair(port, 2, 10, "start of 2"),
        lambda: Member(("localhost", port), 1, 10, "start of 3"),
    )
    for outcome in outcomes:
        assert str(outcome).endswith("came to 'start of 3'") and "process 1 on" in str(outcome)
