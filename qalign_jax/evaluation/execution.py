"""Execution of solutions' code in a sandbox: while they are decoded, or of finished texts."""

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qalign_jax.decoding.turns import Turns
from qalign_jax.evaluation.protocols import code
from qalign_jax.sandbox.limits import Outcome
from qalign_jax.sandbox.pool import Sandbox

WORKERS = 4  # solutions at once
# As NeMo-Skills allows; without a sandbox no turn is replied to.
TURNS = Turns(code.STOP, reply=lambda number, text: None, most=3)

# Prints whether two expressions are equal. It runs in the sandbox, as sympy's parser evaluates.
_ALGEBRA = r"""
import re
from sympy import simplify
from sympy.parsing import sympy_parser as parser

RULES = parser.standard_transformations + (
    parser.convert_xor, parser.implicit_multiplication_application)
GROUP = r"\s*\{([^{}]*)\}"

def read(text):
    for _ in range(8):  # the innermost groups first
        text = re.sub(r"\\[dt]?frac" + GROUP + GROUP, r"((\1)/(\2))", text)
        text = re.sub(r"\\sqrt" + GROUP, r"sqrt(\1)", text)
    text = re.sub(r"\\(?:left|right|[!,; ])", "", text)
    for latex, plain in (("\\cdot", "*"), ("\\times", "*"), ("\\pi", "pi")):
        text = text.replace(latex, plain)
    return parser.parse_expr(text, transformations=RULES)

print(simplify(read(ONE) - read(OTHER)) == 0)
"""


class Execution:
    """Runs code in a sandbox, several solutions at once.

    Blocks of one solution share their state: for each reply, all of its blocks run in order in a
    fresh process, so a solution may wait for its next block as long as it likes.
    """

    def __init__(self, workers: int = WORKERS):
        """Starts the sandbox; raises a ValueError where it does not start on this machine."""
        self._sandbox = Sandbox(workers)
        self._threads = concurrent.futures.ThreadPoolExecutor(workers, "execution")
        self._outcomes: dict[int, list[Outcome]] = {}
        self.turns = dataclasses.replace(TURNS, reply=self._reply)

    def _reply(self, number: int, text: str) -> concurrent.futures.Future[str | None] | None:
        """The output of an answer's newest block as `Turns.reply` gives it.

        No text where the block fails or prints nothing, which ends the solution.
        """
        found = code.programs(text)
        if found is None or not found.finished:
            return None
        return self._threads.submit(self._run_newest, number, found.blocks)

    def _run_newest(self, number: int, blocks: Sequence[str]) -> str | None:
        with self._sandbox.session() as session:
            outcome = [session.run(block) for block in blocks][-1]
        self._outcomes.setdefault(number, []).append(outcome)
        output = outcome.output.strip("\n")
        return code.OUTPUT.format(output) if outcome.status == "ok" and output else None

    def take(self, number: int) -> list[dict[str, str]]:
        """Status and output of the blocks that `turns` ran for an answer; forgets them."""
        return [_shown(outcome) for outcome in self._outcomes.pop(number, [])]

    def solve(self, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
        r"""Runs the programs of finished solutions, in order.

        Yields:
          a text's `executions`, and its `value`: the result of its `solution()`, else its last
          `\boxed{}` behind the last block, else the last line that the block printed; None where
          there is none of these, or a block fails or never ends.
        """
        return self._threads.map(self._solve, texts)

    def _solve(self, text: str) -> dict[str, Any]:
        found = code.programs(text)
        if found is None:
            return {"executions": [], "value": code.boxed(text)}
        if not found.finished:
            outcome = Outcome("error", "not run: the last block has no end")
            return {"executions": [_shown(outcome)], "value": None}
        with self._sandbox.session() as session:
            *others, last = found.blocks
            outcomes = [session.run(block) for block in others]
            outcomes.append(session.run(last, found.call or None))
        last = outcomes[-1]
        value = last.value
        if last.status == "ok" and not found.call:
            printed = last.output.strip().split("\n")[-1]
            value = code.boxed(text[found.end :]) or printed or None
        return {"executions": [_shown(outcome) for outcome in outcomes], "value": value}

    def equal(self, answered: Mapping[str, Any]) -> bool:
        """Whether algebra shows the prediction to be the published answer."""
        prediction, gold = answered["prediction"], str(answered["answer"])
        if prediction is None or (code.number_of(gold) and code.number_of(prediction)):
            return False
        program = f"ONE, OTHER = {gold!r}, {prediction!r}\n{_ALGEBRA}"
        outcome = self._sandbox.run(program)
        return outcome.status == "ok" and outcome.output.strip() == "True"

    def __enter__(self) -> "Execution":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the sandbox and what runs in it."""
        self._threads.shutdown(cancel_futures=True)
        self._sandbox.close()


def _shown(outcome: Outcome) -> dict[str, str]:
    return {"status": outcome.status, "output": outcome.output}
