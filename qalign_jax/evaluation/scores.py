"""What one system reaches on one benchmark, from its judged answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qalign_jax.decoding.speculative import Drafted
from qalign_jax.evaluation import consistency, statistics
from qalign_jax.evaluation.benchmarks import Benchmark
from qalign_jax.evaluation.protocols import choice

# Language -> problem id -> its line of answers, judged.
Answers = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """`result` is what results.json holds: percentages by language, `average`, `non_english`; and
    under names of their own more of such tables. `correct` is what systems are compared by.
    """

    result: dict[str, Any]
    correct: dict[str, dict[str, bool]]  # language -> problem id


def scores(benchmark: Benchmark, answers: Answers, likelihoods: Answers) -> Scores:
    """The scores of all answers.

    In `result`, beside the accuracies by the published reader: `intervals` (95 %), `sound`, the
    accuracies by the sound reader, and `consistency`: answers in the question's language, and
    predictions equal to the English ones. In multiple choice `likelihood` and
    `likelihood_per_character`, the accuracies of the most likely choices; where code was run,
    `executions`, the percentage of blocks by status. Where tokens were drafted, `acceptance`, the
    percentage of compared drafts that was kept, and `tokens_per_round`, by language and of `all`.
    """
    averaged = benchmark.averaged
    correct = by_id(answers, "correct")
    result: dict[str, Any] = dict(accuracies(correct, averaged))
    result["intervals"] = statistics.intervals(correct, averaged)
    result["sound"] = accuracies(by_id(answers, "sound_correct"), averaged)
    consistent = {
        "prediction": consistency.prediction_consistency(by_id(answers, "prediction"), averaged)
    }
    if benchmark.protocol is not choice:  # a letter is written in no language
        outputs = {
            language: [answer["output"] for answer in row.values()]
            for language, row in answers.items()
        }
        consistent["language"] = consistency.answer_consistency(outputs, averaged)
    result["consistency"] = {name: shares for name, shares in consistent.items() if shares}
    for name, key in (("likelihood", "correct"), ("likelihood_per_character", "sound_correct")):
        if likelihoods:
            result[name] = accuracies(by_id(likelihoods, key), averaged)
    if statuses := executions(answers):
        result["executions"] = statuses
    return Scores(result | drafts(answers), correct)


def by_id(answers: Answers, key: str) -> dict[str, dict[str, Any]]:
    """One field of all answers."""
    return {
        language: {problem_id: answer[key] for problem_id, answer in row.items()}
        for language, row in answers.items()
    }


def accuracies(
    correct: Mapping[str, Mapping[str, bool]], averaged: Sequence[str]
) -> dict[str, float]:
    """As statistics.accuracies, of answers by id."""
    lists = {language: list(row.values()) for language, row in correct.items()}
    return statistics.accuracies(lists, averaged)


def executions(answers: Answers) -> dict[str, float]:
    """Percentage of executed blocks by status."""
    statuses = [
        execution["status"]
        for row in answers.values()
        for answer in row.values()
        for execution in answer.get("executions", ())
    ]
    return {
        status: round(100 * statuses.count(status) / len(statuses), 2)
        for status in sorted(set(statuses))
    }


def drafts(answers: Answers) -> dict[str, dict[str, float]]:
    """`acceptance` and `tokens_per_round` by language and of all; empty where nothing drafted."""
    counts = {
        language: sum(
            (Drafted(**answer["drafted"]) for answer in row.values() if "drafted" in answer),
            Drafted.nothing(),
        )
        for language, row in answers.items()
    }
    counts["all"] = sum(counts.values(), Drafted.nothing())
    shares = {language: own.shares() for language, own in counts.items()}
    acceptance = {
        language: round(100 * own["acceptance"], 2)
        for language, own in shares.items()
        if "acceptance" in own
    }
    rounds = {
        language: own["tokens_per_round"]
        for language, own in shares.items()
        if "tokens_per_round" in own
    }
    found = {"acceptance": acceptance, "tokens_per_round": rounds}
    return {name: table for name, table in found.items() if table}
