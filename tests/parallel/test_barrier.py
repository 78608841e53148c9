"""Missing processes are named: never started, late, ended, silent, or at another barrier."""

import socket
import threading
import time

import pytest

from qalign_jax.parallel.barrier import HOST, Coordinator, Member, MissingProcess

ENDED = "has ended (its log says why)"


made = []


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        number = free.getsockname()[1]
    yield number
    while made:
        made.pop().close()


def together(*functions):
    """Runs functions concurrently in threads; returns what each returned or raised."""
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


def member(port, process, join_s=10, hang_s=60, first="start", after=0):
    """A process at the barriers; `told` of it has the messages that would end it."""
    time.sleep(after)
    told = []
    each = Member(("localhost", port), process, told.append, join_s, hang_s, first)
    each.told = told
    made.append(each)
    return each


def start(port, processes, join_s=10, hang_s=60, barrier_s=60):
    """All members, behind their first barrier."""
    Coordinator(port, processes, join_s, hang_s, barrier_s)
    return together(*(lambda n=n: member(port, n, join_s, hang_s) for n in range(processes)))


def waits(*members, barrier="next"):
    return together(*(lambda each=each: each.wait(barrier) for each in members))


def told(*members):
    """What each is told, once all are."""
    deadline = time.monotonic() + 10
    while not all(each.told for each in members) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [each.told for each in members]


def test_no_process_passes_a_barrier_before_all_reach_it(port):
    members, times = start(port, 3), {}

    def late(process, barrier):
        time.sleep(0.2 * process)
        barrier.wait("next")
        times[process] = time.monotonic()

    began = time.monotonic()
    together(*(lambda n=n, each=each: late(n, each) for n, each in enumerate(members)))
    assert len(times) == 3 and min(times.values()) - began >= 0.4


def test_those_that_never_start_are_named_to_all_that_do(port):
    Coordinator(port, 4, 1.5)
    outcomes = together(lambda: member(port, 0), lambda: member(port, 2))
    for outcome in outcomes:
        assert isinstance(outcome, MissingProcess)
        assert (
            str(outcome)
            == "not all reached the barrier 'start': process 1, process 3 did not come in 1.5 s"
        )


def test_without_process_0_its_address_is_named(port):
    with pytest.raises(MissingProcess, match=rf"process 0 at localhost:{port} did not come in 1 s"):
        member(port, 1, join_s=1.0)


def test_one_that_ends_between_barriers_is_named_to_all_others_at_once(port):
    first, second, third = start(port, 3)
    began = time.monotonic()
    third.close()  # as the operating system does when a process ends
    assert told(first, second) == [[f"process 2 on {HOST} {ENDED}"]] * 2
    assert time.monotonic() - began < 5 and third.told == []


def test_one_that_ends_while_the_others_wait_is_named(port):
    first, second, third = start(port, 3)
    outcomes = together(
        lambda: first.wait("next"), lambda: second.wait("next"), lambda: third.close()
    )
    assert list(map(str, outcomes[:2])) == [f"process 2 on {HOST} {ENDED}"] * 2


def test_one_that_came_and_ended_before_the_last_is_named(port):
    first, second, third = start(port, 3)
    third._connection.send([2, HOST, "next"])
    third.close()
    for outcome in waits(first, second):
        assert f"process 2 on {HOST} {ENDED}" == str(outcome)


def test_when_process_0_ends_the_others_are_told(port):
    coordinator = Coordinator(port, 2)
    first, second = together(lambda: member(port, 0), lambda: member(port, 1))
    for connection in list(coordinator._members.values()):
        connection._socket.shutdown(socket.SHUT_RDWR)
    assert told(first, second) == [[f"process 0 on {HOST} {ENDED}"]] * 2


def test_one_that_falls_silent_is_named_in_the_configured_time(port):
    Coordinator(port, 3, hang_timeout_s=0.8)
    with socket.create_connection(("localhost", port)) as silent:  # as a stopped process has it
        silent.sendall(b'[2, "there", "start"]\n')
        first, second = together(lambda: member(port, 0), lambda: member(port, 1))
        began = time.monotonic()
        message = "process 2 on there has not been heard of for 0.8 s"
        assert told(first, second) == [[message]] * 2
        assert 0.5 < time.monotonic() - began < 5


def test_a_silent_process_0_is_named_in_the_configured_time(port):
    with socket.create_server(("localhost", port)) as server:
        thread = threading.Thread(target=member, args=(port, 1), kwargs={"hang_s": 0.8})
        thread.start()
        silent, _ = server.accept()
        with silent:
            silent.sendall(b'["", "there"]\n')
            thread.join()
            assert told(*made) == [["process 0 on there has not been heard of for 0.8 s"]]


def test_a_long_wait_at_a_barrier_is_no_silence(port):
    first, second = start(port, 2, hang_s=0.5)
    began = time.monotonic()
    assert together(lambda: first.wait("next"), lambda: time.sleep(1.5) or second.wait("next")) == [
        None,
        None,
    ]
    assert time.monotonic() - began > 1.4 and first.told == second.told == []


def test_those_that_leave_together_are_not_missed(port):
    members = start(port, 3, hang_s=0.5)
    assert together(*(each.leave for each in members)) == [None] * 3
    for each in members:
        each.close()
    time.sleep(1)
    assert [each.told for each in members] == [[]] * 3


def test_one_that_is_late_is_named_with_its_host(port):
    first, _, third = start(port, 3, barrier_s=0.5)
    for outcome in waits(first, third):
        assert (
            str(outcome)
            == f"not all reached the barrier 'next': process 1 on {HOST} did not come in 0.5 s"
        )


def test_processes_at_different_barriers_are_named(port):
    first, second = start(port, 2)
    for outcome in together(lambda: first.wait("one"), lambda: second.wait("two")):
        assert (
            str(outcome) == f"not all reached the barrier 'one': process 1 on {HOST} came to 'two'"
        )


def test_strangers_on_the_port_are_passed_over(port):
    Coordinator(port, 2)
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"5\n", b'["a", "b"]\n', b"", b"[[], 0, 0]\n",
                 b"[1, 2, 3, 4]\n", b"x" * 9000, b"[" * 4000 + b"\n"):  # fmt: skip
        with socket.create_connection(("localhost", port), timeout=5) as line:
            line.sendall(said)
    members = together(lambda: member(port, 0), lambda: member(port, 1))
    assert waits(*members) == [None, None]


def test_a_number_that_comes_twice_or_is_too_high_is_refused(port):
    Coordinator(port, 3)
    first, second, again, high, third = together(
        lambda: member(port, 0),
        lambda: member(port, 1),
        lambda: member(port, 1, after=0.3),
        lambda: member(port, 7, after=0.3),
        lambda: member(port, 2, after=0.6),
    )
    assert str(again) == f"process 1 on {HOST} is there already"
    assert str(high) == f"process 0 on {HOST} waits for 2 others, none is 7"
    assert waits(first, second, third) == [None] * 3


def test_one_that_ended_before_the_start_may_be_started_again(port):
    Coordinator(port, 2)
    with socket.create_connection(("localhost", port)) as line:
        line.sendall(b'[1, "there", "start"]\n')
        time.sleep(0.2)
    members = together(lambda: member(port, 0, after=0.2), lambda: member(port, 1))
    assert waits(*members) == [None] * 2


def test_a_taken_port_is_a_mistake():
    with socket.create_server(("", 0)) as other:
        with pytest.raises(ValueError, match=f"cannot listen on port {other.getsockname()[1]}"):
            Coordinator(other.getsockname()[1], 2)


def test_processes_that_expect_other_numbers_of_them_do_not_meet(port):
    Coordinator(port, 2)
    outcomes = together(
        lambda: member(port, 0, first="start of 2"), lambda: member(port, 1, first="start of 3")
    )
    for outcome in outcomes:
        assert str(outcome).endswith("came to 'start of 3'") and "process 1 on" in str(outcome)
