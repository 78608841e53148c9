"""Scores outputs that exist, from any system, with both readers of an answer.

    python -m qalign_jax.score --benchmark=mgsm --predictions=outputs.jsonl

The file is JSON Lines: `output` (a model's whole response), `answer` (the published one) and
`language` (ISO 639-1; on every line or on none). Answer files of a run can be given as they are.
"""

import collections
import os
import sys
from typing import Any

from absl import flags
from etils import epath

from qalign_jax import cli, files
from qalign_jax.evaluation import benchmarks, statistics
from qalign_jax.reporting import tables


def score(benchmark_name: str, path: str | os.PathLike) -> dict[str, Any]:
    """{"benchmark", "n", "accuracy": {..}, "sound": {..}} of a predictions file, in percent.

    Without languages both hold `average` alone, the mean over all lines.

    Raises:
      ValueError: naming file and line of what cannot be scored.
    """
    benchmark = benchmarks.get(benchmark_name)
    correct, sound = collections.defaultdict(list), collections.defaultdict(list)
    for number, row in _predictions(path):
        where = f"{path}:{number}"
        language = _language(row, where)
        if language:
            try:
                benchmark.check_languages([language])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        if correct and (language == "") != ("" in correct):
            raise ValueError(
                f"{where}: {'no language' if not language else 'a language'} here, unlike the "
                "lines above; give it on every line or on none"
            )
        output, answer = _output(row, where), _answer(row, where)
        judged = benchmark.protocol.judge(output, answer, language, where)
        correct[language].append(judged["correct"])
        sound[language].append(judged["sound_correct"])
    if not correct:
        raise ValueError(f"{path} holds no predictions; give one JSON object a line")
    return {
        "benchmark": benchmark.name,
        "n": sum(map(len, correct.values())),
        "accuracy": _accuracies(correct, benchmark),
        "sound": _accuracies(sound, benchmark),
    }


def _predictions(path):
    if not epath.Path(path).is_file():
        raise ValueError(f"--predictions={path}: there is no such file")
    for number, row in files.read_json_lines(path, "write one JSON object a line"):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}:{number}: expected an object with output and answer, found "
                f"{type(row).__name__}"
            )
        if "header" not in row or "output" in row:
            yield number, row


def _output(row, where) -> str:
    output = _field(row, "output", where)
    if not isinstance(output, str):
        raise ValueError(f"{where}: output must be the response's text, found {output!r}")
    return output


def _answer(row, where) -> str:
    answer = _field(row, "answer", where)
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise ValueError(f"{where}: answer must be a number or its text, found {answer!r}")
    return answer if isinstance(answer, str) else str(answer)


def _language(row, where) -> str:
    language = row.get("language") or ""
    if not isinstance(language, str):
        raise ValueError(f"{where}: language must be a code like 'de', found {language!r}")
    return language


def _field(row, key, where):
    if key not in row:
        raise ValueError(
            f"{where}: no {key!r}; a line needs output and answer, "
            f"it has {', '.join(row) or 'none'}"
        )
    return row[key]


def _accuracies(correct, benchmark) -> dict[str, float]:
    accuracies = statistics.accuracies(correct, benchmark.averaged)
    accuracies.pop("", None)
    if "" in correct:
        accuracies.pop("non_english")
    return accuracies


def define_flags() -> None:
    flags.DEFINE_string(
        "benchmark", None, f"One of {', '.join(benchmarks.BENCHMARKS)}.", required=True
    )
    flags.DEFINE_string(
        "predictions",
        None,
        "JSON Lines file with output and answer, and language where there are several.",
        required=True,
    )


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    result = score(flags.FLAGS.benchmark, flags.FLAGS.predictions)
    shown = {
        "paper's reader": {result["benchmark"]: result["accuracy"]},
        "sound reader": {result["benchmark"]: result["sound"]},
    }
    print(tables.text(shown), file=sys.stderr)
    return result


if __name__ == "__main__":
    cli.main(_command, define_flags)
