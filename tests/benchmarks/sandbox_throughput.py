"""Short programs a second in the sandbox, each in a fresh process.

    python -m tests.benchmarks.sandbox_throughput

As many threads as workers hand in programs. A rate is of --seconds of work; the table has the
median and the least of --repeats of them.
"""

import concurrent.futures
import statistics
import time

from absl import app, flags

from qalign_jax.sandbox.pool import Sandbox

SECONDS = flags.DEFINE_float("seconds", 4, "Seconds of one measurement.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each cell.")

PROGRAMS = {  # name: code, the function to call
    "short": ("apples = 23\neaten = 20\napples - eaten + 6", None),
    "`solution()`": ("def solution():\n    money = 23 - 5 * 3\n    return money\n", "solution"),
    "numpy": ("import numpy as np\nnp.roots([1, -3, 2])", None),
    "sympy": ("from sympy import symbols, solve\nx = symbols('x')\nsolve(x**2 - 4)", None),
}


def rate(sandbox: Sandbox, workers: int, code: str, call: str | None) -> float:
    """Programs a second of as many threads as workers."""
    start = time.monotonic()

    def work(_):
        done = 0
        while time.monotonic() - start < SECONDS.value:
            outcome = sandbox.run(code, call)
            if outcome.status != "ok":
                raise RuntimeError(f"{code!r}: {outcome}")
            done += 1
        return done

    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        done = sum(threads.map(work, range(workers)))
    return done / (time.monotonic() - start)


def main(_) -> None:
    print("| program | workers | median, programs/s | least |")
    print("|---|---|---|---|")
    for workers in (1, 2):
        with Sandbox(workers) as sandbox:
            for name, (code, call) in PROGRAMS.items():
                rates = [rate(sandbox, workers, code, call) for _ in range(REPEATS.value)]
                row = f"{statistics.median(rates):.1f} | {min(rates):.1f}"
                print(f"| {name} | {workers} | {row} |", flush=True)


if __name__ == "__main__":
    app.run(main)
