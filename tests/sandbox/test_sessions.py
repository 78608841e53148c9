"""Blocks of a solution: output, errors, values, state, limits, and threads that share a sandbox."""

import concurrent.futures

import pytest

from qalign_jax.sandbox.limits import Limits, Outcome
from qalign_jax.sandbox.pool import Sandbox

pytestmark = pytest.mark.usefixtures("bubblewrap")


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print('a')\nprint('b', end='')", "a\nb"),
        ("x = 3\nx + 1", "4\n"),
        ("'text'", "'text'\n"),
        ("None", ""),
        ("print(1)\nprint(2)", "1\n2\n"),
        ("", ""),
        ("import sys\nprint('warned', file=sys.stderr)", "warned\n"),
        ("import warnings\nwarnings.warn('old')", ""),
        ("if __name__ == '__main__': print('main')", "main\n"),
        ("'äΩ😀'", "'äΩ😀'\n"),
        ("import math, itertools\nmath.comb(5, 2), *itertools.repeat(1, 2)", "(10, 1, 1)\n"),
        ("from fractions import Fraction\nFraction(1, 3) + 1", "Fraction(4, 3)\n"),
        ("from decimal import Decimal\nDecimal('0.1') * 3", "Decimal('0.3')\n"),
        ("import statistics\nstatistics.median([1, 9, 2])", "2\n"),
        ("import numpy as np\nnp.linalg.inv(2 * np.eye(2)) @ [2, 4]", "array([1., 2.])\n"),
        ("from sympy import *\nx = symbols('x')\nsolve(x**2 - 2)", "[-sqrt(2), sqrt(2)]\n"),
        (
            "import dataclasses\n@dataclasses.dataclass\nclass A:\n  x: 'int'\nA(1)",
            "A(x=1)\n",
        ),
        ("open('notes', 'w').write('kept')\nopen('notes').read()", "'kept'\n"),
    ],
)  # fmt: skip
def test_output_is_what_is_printed_and_the_last_value_as_a_notebook_shows_it(code, output, sandbox):
    assert sandbox.run(code) == Outcome("ok", output)


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print('before')\n1 / 0", "before\nZeroDivisionError: division by zero\n"),
        ("print('before', end='')\n1 / 0", "before\nZeroDivisionError: division by zero\n"),
        ("1 +", "SyntaxError: invalid syntax\n"),
        ("return 1", "SyntaxError: 'return' outside function\n"),
        ("import decimal\ndecimal.Decimal('x')", "decimal.InvalidOperation: "
            "[<class 'decimal.ConversionSyntax'>]\n"),
        ("assert False", "AssertionError\n"),
        ("raise ValueError('two\\nlines')", "ValueError: two\nlines\n"),
    ],
)  # fmt: skip
def test_an_exception_is_the_last_line_of_its_traceback_behind_what_was_printed(
    code, output, sandbox
):
    assert sandbox.run(code) == Outcome("error", output)


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        ("18", "18"), ("0.1 + 0.2", "0.30000000000000004"), ("1 / 3", "0.3333333333333333"),
        ("'18 dollars'", "18 dollars"), ("None", "None"), ("[1, 2]", "[1, 2]"),
        ("__import__('numpy').float64(2.5)", "2.5"), ("__import__('numpy').int64(3)", "3"),
        ("__import__('sympy').Rational(1, 3)", "1/3"),
        ("__import__('fractions').Fraction(1, 3)", "1/3"),
    ],
)  # fmt: skip
def test_the_value_is_the_text_of_what_the_called_function_returns(returned, value, sandbox):
    code = f"def solution():\n    print('working')\n    return {returned}\n"
    assert sandbox.run(code, call="solution") == Outcome("ok", "working\n", value)


def test_a_function_that_is_missing_or_fails_is_an_error(sandbox):
    outcome = sandbox.run("x = 1", call="solution")
    assert outcome == Outcome("error", "NameError: name 'solution' is not defined\n")
    outcome = sandbox.run("def solution(): return 1 // 0", call="solution")
    assert outcome.output == "ZeroDivisionError: integer division or modulo by zero\n"
    assert outcome.value is None


def test_state_is_kept_between_blocks_and_output_is_each_block_s_own(sandbox):
    with sandbox.session() as session:
        assert session.run("x = 2\nprint(x)") == Outcome("ok", "2\n")
        assert session.run("def double(): return 2 * x\nx += 1") == Outcome("ok", "")
        assert session.run("double()") == Outcome("ok", "6\n")
        assert session.run("x", call="double") == Outcome("ok", "3\n", "6")
    assert sandbox.run("x").output == "NameError: name 'x' is not defined\n"


@pytest.mark.parametrize("code", ["1 / 0", "import os\nos._exit(0)", "x = 1\n" * 10**5])
def test_no_block_runs_behind_one_that_failed(code, sandbox):
    with sandbox.session() as session:
        assert session.run("1").status == "ok"
        assert session.run(code).status in ("error", "killed")
        later = Outcome("error", "not run: an earlier block of this solution failed")
        assert [session.run("print(1)") for _ in range(2)] == [later, later]


def test_output_and_value_are_cut_behind_1000_characters(sandbox):
    long = "def solution(): return '😀' * 5000\nprint('😀' * 1000, end='')"
    assert sandbox.run(long, "solution") == Outcome("ok", "😀" * 1000, "😀" * 1000 + "<output cut>")
    assert sandbox.run("print('x' * 1000)").output == "x" * 1000 + "<output cut>"
    assert sandbox.run("for i in range(10**6): print(i, end=' ')").output.endswith("<output cut>")


@pytest.mark.slow
def test_a_solution_s_processor_time_is_limited():
    with Sandbox(1, Limits(seconds=60, cpu_seconds=1)) as sandbox:
        assert sandbox.run("while True: pass").status == "killed"
        assert sandbox.run("1").status == "ok"


def test_threads_share_a_sandbox_and_each_gets_its_own_results():
    with (
        Sandbox(2) as sandbox,
        concurrent.futures.ThreadPoolExecutor(8) as threads,
    ):

        def solve(number):
            with sandbox.session() as session:
                session.run(f"x = {number}")
                if number % 5 == 0:
                    session.run("import os; os._exit(1)")
                return session.run("print(x * x)")

        outcomes = list(threads.map(solve, range(40)))
    assert [outcome.output for outcome in outcomes] == [
        "not run: an earlier block of this solution failed" if number % 5 == 0
        else f"{number * number}\n" for number in range(40)
    ]  # fmt: skip


def test_no_more_sessions_than_workers_are_open_at_once():
    with (
        Sandbox(2) as sandbox,
        concurrent.futures.ThreadPoolExecutor(1) as thread,
    ):
        with sandbox.session() as first, sandbox.session() as second:
            assert first.run("1").status == second.run("1").status == "ok"
            third = thread.submit(sandbox.run, "print(3)")
            with pytest.raises(concurrent.futures.TimeoutError):
                third.result(0.5)
        assert third.result(60).output == "3\n"


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"memory_mb": -1}, {"seconds": float("nan")}])
def test_limits_that_are_no_positive_number_are_refused(limits):
    with pytest.raises(ValueError, match="expected a finite number above 0"):
        Limits(**limits)
    with pytest.raises(ValueError, match="workers=0: expected at least 1"):
        Sandbox(0)
