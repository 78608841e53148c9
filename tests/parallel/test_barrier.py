"""A barrier names missing processes: never started, late, ended, or at another barrier."""

import socket
import threading
import time

import pytest

from qalign_jax.parallel.barrier import HOST, Coordinator, MissingProcess, Worker


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


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


def join(port, processes, timeout_s=10):
    """The coordinator and all workers, after their first barrier."""
    return together(
        lambda: Coordinator(port, processes, timeout_s),
        *(lambda n=n: Worker(("localhost", port), n, timeout_s) for n in range(1, processes)),
    )


def test_no_process_passes_a_barrier_before_all_reach_it(port):
    coordinator, *workers = join(port, 3)
    times = {}

    def late(process, barrier):
        time.sleep(0.2 * process)
        barrier.wait("next", 10)
        times[process] = time.monotonic()

    began = time.monotonic()
    together(*(lambda n=n, m=m: late(n, m) for n, m in enumerate([coordinator, *workers])))
    assert len(times) == 3 and min(times.values()) - began >= 0.4


def test_those_that_never_start_are_named_to_all_that_do(port):
    outcomes = together(
        lambda: Coordinator(port, 4, 2.5), lambda: Worker(("localhost", port), 2, 2.5)
    )
    for outcome in outcomes:
        assert isinstance(outcome, MissingProcess)
        assert (
            str(outcome)
            == "not all reached the barrier 'start': process 1, process 3 did not come in 2.5 s"
        )


def test_without_process_0_its_address_is_named(port):
    with pytest.raises(MissingProcess, match=rf"process 0 at localhost:{port} did not come in 1 s"):
        Worker(("localhost", port), 1, 1.0)


def test_one_that_ended_is_named_with_its_host_at_once(port):
    coordinator, first, second = join(port, 3)
    second._connection.close()  # as the operating system does when a process ends
    began = time.monotonic()
    outcomes = together(lambda: coordinator.wait("next", 60), lambda: first.wait("next", 60))
    assert [str(outcome) for outcome in outcomes] == [
        f"not all reached the barrier 'next': process 2 on {HOST} ended before (see the log there)"
    ] * 2
    assert time.monotonic() - began < 5


def test_one_that_came_and_ended_before_the_last_is_named(port):
    coordinator, first, second = join(port, 3)
    second._connection.send([2, HOST, "next"])
    second._connection.close()
    outcomes = together(lambda: first.wait("next", 60), lambda: coordinator.wait("next", 60))
    assert all(f"process 2 on {HOST} ended" in str(outcome) for outcome in outcomes)


def test_one_that_is_late_is_named_with_its_host(port):
    coordinator, _, second = join(port, 3)
    outcomes = together(lambda: coordinator.wait("next", 0.5), lambda: second.wait("next", 0.5))
    for outcome in outcomes:
        assert (
            str(outcome)
            == f"not all reached the barrier 'next': process 1 on {HOST} did not come in 0.5 s"
        )


def test_processes_at_different_barriers_are_named(port):
    coordinator, worker = join(port, 2)
    outcomes = together(lambda: coordinator.wait("one", 10), lambda: worker.wait("two", 10))
    for outcome in outcomes:
        assert (
            str(outcome) == f"not all reached the barrier 'one': process 1 on {HOST} came to 'two'"
        )


def test_when_process_0_ends_the_others_raise(port):
    coordinator, worker = join(port, 2)
    coordinator._connections[1].close()
    with pytest.raises(MissingProcess, match=rf"process 0 at localhost:{port} ended before"):
        worker.wait("next", 60)


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

    def worker():
        time.sleep(0.5)
        return Worker(("localhost", port), 1, 10)

    coordinator, _, second = together(lambda: Coordinator(port, 2, 10), stranger, worker)
    assert together(lambda: coordinator.wait("next", 10), lambda: second.wait("next", 10)) == [
        None,
        None,
    ]


def test_a_number_that_comes_twice_or_is_too_high_is_refused(port):
    def worker(number, seconds):
        time.sleep(seconds)
        return Worker(("localhost", port), number, 10)

    coordinator, first, again, high, second = together(
        lambda: Coordinator(port, 3, 10),
        lambda: worker(1, 0.3),
        lambda: worker(1, 0.6),
        lambda: worker(7, 0.6),
        lambda: worker(2, 1.0),
    )
    assert str(again) == f"process 1 on {HOST} is there already"
    assert str(high) == f"process 0 on {HOST} waits for 2 others, none is 7"
    waits = [lambda each=each: each.wait("next", 10) for each in (coordinator, first, second)]
    assert together(*waits) == [None] * 3


def test_one_that_ended_before_the_start_may_be_started_again(port):
    def started_twice():
        time.sleep(0.3)
        with socket.create_connection(("localhost", port)) as line:
            line.sendall(b'[1, "there", "start"]\n')
        time.sleep(0.3)
        return Worker(("localhost", port), 1, 10)

    def second():
        time.sleep(0.9)
        return Worker(("localhost", port), 2, 10)

    everyone = together(lambda: Coordinator(port, 3, 10), started_twice, second)
    waits = [lambda each=each: each.wait("next", 10) for each in everyone]
    assert together(*waits) == [None] * 3


def test_a_taken_port_is_a_mistake():
    with socket.create_server(("", 0)) as other:
        with pytest.raises(ValueError, match=f"cannot listen on port {other.getsockname()[1]}"):
            Coordinator(other.getsockname()[1], 2, 1)


def test_processes_that_expect_other_numbers_of_them_do_not_meet(port):
    outcomes = together(
        lambda: Coordinator(port, 2, 10, "start of 2"),
        lambda: Worker(("localhost", port), 1, 10, "start of 3"),
    )
    for outcome in outcomes:
        assert str(outcome).endswith("came to 'start of 3'") and "process 1 on" in str(outcome)
