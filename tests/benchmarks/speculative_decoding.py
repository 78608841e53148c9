"""Speculative proxy-tuning on this CPU: the demo's models, and a large one ten times the expert.

    python -m qalign_jax.run --config=configs/demo.py:larger --workdir=runs/larger
    python -m tests.benchmarks.speculative_decoding --workdir=runs/larger [--rounds=5]

All decode the same questions, of the demo's test in all its languages, in float32, one after the
other in every round: the large model alone, the same steered by the expert a token at a time, and
steered with the expert's drafts. Figures are seconds a token over those of the large model alone in
the same round, medians with their range; their tokens are compared.

The second table is of bfloat16, in which a pass over several tokens rounds otherwise than one pass
a token: how many answers differ from those of plain decoding, and how many nats lie between the two
tokens where an answer first does (by plain decoding's models, in bfloat16).
"""

import argparse
import os
import statistics
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from qalign_jax.data.prompts import render
from qalign_jax.decoding.likelihood import Continuation
from qalign_jax.decoding.speculative import Drafted
from qalign_jax.decoding.system import System
from qalign_jax.evaluation import benchmarks

EOS = 2
MODELS = ("larger_pretraining", "response_alignment", "pretraining")
DRAFT_TOKENS = ("auto", 2, 4, 8)


def questions(workdir: str, count: int) -> list[str]:
    """Prompts of the demo's test, by turns in each of its languages."""
    options = {"part": "test", "count": count, "seed": 0, "languages": (), "split": "", "path": ""}
    problems = benchmarks.load_problems("word_problems", options | {"limit": 0}, f"{workdir}/data")
    by_id = sorted(problems, key=lambda problem: str(problem["id"]))
    return [render("short", problem["question"]) for problem in by_id][:count]


class Side:
    """An engine, its last answers, and seconds a token of each round."""

    def __init__(self, system: System, slots: int):
        self._engine = system.engine(slots=slots)
        self.seconds: list[float] = []
        self.answers: list[list[int]] = []
        self.drafted = Drafted.nothing()

    def decode(self, prompts: list[list[int]]) -> None:
        began = time.perf_counter()
        answers = sorted(self._engine.generate(prompts, 64), key=lambda answer: answer.number)
        seconds = time.perf_counter() - began
        self.answers = [answer.tokens for answer in answers]
        # EOS is decoded, too
        self.seconds.append(seconds / sum(len(tokens) + 1 for tokens in self.answers))
        drafts = [answer.drafted for answer in answers if answer.drafted]
        self.drafted = sum(drafts, Drafted.nothing())


def shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def narrow(directories: list[str], prompts: list[list[int]]) -> None:
    """Prints how answers in bfloat16 differ."""
    engines = {
        drafts: System.load(directories, dtype="bfloat16", draft_tokens=drafts).engine(slots=8)
        for drafts in (0, 4)
    }
    plain, drafted = (
        [answer.tokens for answer in sorted(engine.generate(prompts, 64), key=lambda a: a.number)]
        for engine in engines.values()
    )
    tokens, margins = 0, []
    for prompt, own, other in zip(prompts, plain, drafted, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
        same = min(len(own), len(other)) if same is None else same
        tokens += same + 1
        if own != other:
            ends = [[*answer, EOS][same] for answer in (own, other)]
            pairs = [Continuation([*prompt, *own[:same], end], len(prompt) + same) for end in ends]
            found = dict(engines[0].log_likelihoods(pairs))
            margins.append(abs(found[0] - found[1]))
    shown_margins = ", ".join(f"{margin:.3f}" for margin in sorted(margins))
    print("\n| answers in bfloat16 | that differ | tokens up to there | nats between the tokens |")
    print(f"|---|---|---|---|\n| {len(prompts)} | {len(margins)} | {tokens} | {shown_margins} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/larger")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--narrow_questions", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    directories = [f"{arguments.workdir}/{stage}" for stage in MODELS]
    alone = System.load(directories[:1], dtype="float32")
    steered = {
        drafts: System.load(directories, dtype="float32", draft_tokens=drafts)
        for drafts in (0, *DRAFT_TOKENS)
    }
    prompts = alone.encode(questions(arguments.workdir, arguments.questions))
    many = alone.encode(questions(arguments.workdir, arguments.narrow_questions))
    print(
        "| batch | system | a token, over the large model alone | tokens a round, acceptance | "
        "equal answers |\n|---|---|---|---|---|"
    )
    for batch in map(int, arguments.batches.split(",")):
        sides = {"alone": Side(alone, batch)}
        sides |= {f"{drafts}": Side(system, batch) for drafts, system in steered.items()}
        for _ in range(arguments.rounds + 1):
            for side in sides.values():
                side.decode(prompts)
        base = sides["alone"].seconds[1:]  # the first round compiles
        print(f"| {batch} | large alone: {1e3 * statistics.median(base):.2f} ms a token | 1 | | |")
        for name, side in sides.items():
            if name == "alone":
                continue
            ratios = [own / its for own, its in zip(side.seconds[1:], base, strict=True)]
            equal = sum(
                own == plain for own, plain in zip(side.answers, sides["0"].answers, strict=True)
            )
            shares = ", ".join(str(value) for value in side.drafted.shares().values())
            print(
                f"| {batch} | steered, {name} drafts | {shown(ratios)} | {shares} | "
                f"{equal} of {len(prompts)} |",
                flush=True,
            )
    narrow(directories, many)


if __name__ == "__main__":
    main()
