"""Scores outputs that exist, from any system, with both readers of an answer.

The file is JSON Lines: `output` (a model's whole response), `answer` (the published one) and
`language` (ISO 639-1; on every line or on none). Answer files of a run can be given as they are.
"""

import collections
import os
from typing import Any

from absl import logging
from etils import epath

from qalign_jax import files
from qalign_jax.evaluation import benchmarks, scores, statistics
from qalign_jax.evaluation.execution import Execution
from qalign_jax.evaluation.protocols import choice, code
from qalign_jax.progress import Progress


def score(benchmark_name: str, path: str | os.PathLike, execute: bool = False) -> dict[str, Any]:
    """{"benchmark", "n", "accuracy": {..}, "sound": {..}, "intervals": {..}} of a file, in percent.

    Without languages all hold `average` alone, the mean over all lines. With `execute` the programs
    of the outputs run in a sandbox, answers are judged as those of code, and `executions` has the
    percentage of programs by how they ended.

    Raises:
      ValueError: naming file and line of what cannot be scored; a sandbox that does not start.
    """
    benchmark = benchmarks.get(benchmark_name)
    if execute:
        if benchmark.protocol is choice:
            raise ValueError(f"--execute: the answers of {benchmark_name} are choices, no programs")
        benchmark = benchmarks.get(benchmark_name, "code")
    answered: dict[str, dict[str, dict[str, Any]]] = collections.defaultdict(dict)
    for number, row in _predictions(path):
        where = f"{path}:{number}"
        language = _language(row, where)
        if language:
            try:
                benchmark.check_languages([language])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        if answered and (language == "") != ("" in answered):
            raise ValueError(
                f"{where}: {'no language' if not language else 'a language'} here, unlike the "
                "lines above; give it on every line or on none"
            )
        answer = {"output": _output(row, where), "answer": _answer(row, where)}
        answer |= {"language": language, "where": where, "choices": _choices(row, where, benchmark)}
        problem = row.get("id", str(len(answered[language])))
        if isinstance(problem, bool) or not isinstance(problem, (str, int)):
            raise ValueError(f"{where}: id must be a text or a number, found {problem!r}")
        problem = str(problem)
        if problem in answered[language]:
            raise ValueError(f"{where}: the id {problem!r} occurs twice; give every line its own")
        answered[language][problem] = answer
    if not answered:
        raise ValueError(f"{path} holds no predictions; give one JSON object a line")
    lines = [line for by_id in answered.values() for line in by_id.values()]
    for line in lines:
        benchmark.protocol.check(line, line["where"])
    if execute:
        _execute(lines)
    for line in lines:
        line |= benchmark.protocol.judge(line, line["where"])
    return {"benchmark": benchmark.name, "n": len(lines), **_figures(answered, benchmark)}


def _execute(lines: list[dict[str, Any]]) -> None:
    """Adds to each line what came of its programs, and whether algebra shows it to be right."""
    progress = Progress("execute", len(lines), unit="answer")
    with Execution() as execution:
        for line, found in zip(lines, execution.solve([e["output"] for e in lines]), strict=True):
            line |= found
            line["equal"] = execution.equal(line | code.judge(line, line["where"]))
            progress.add(0)
    progress.close()
    if not any(line["executions"] for line in lines):
        logging.warning("none of the outputs holds a program in a form that is known")


def _figures(answered, benchmark) -> dict[str, Any]:
    averaged, figures = benchmark.averaged, {}
    for name, key in (("accuracy", "correct"), ("sound", "sound_correct")):
        correct = scores.by_id(answered, key)
        figures[name] = scores.accuracies(correct, averaged)
        if name == "accuracy":
            figures["intervals"] = statistics.intervals(correct, averaged)
    if "" in answered:
        figures = {name: {"average": table["average"]} for name, table in figures.items()}
    if executions := scores.executions(answered):
        figures["executions"] = executions
    return figures


def _predictions(path):
    if not epath.Path(path).is_file():
        raise ValueError(f"--predictions={path}: there is no such file, or it is a folder")
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


def _choices(row, where, benchmark) -> list[str]:
    choices = row.get("choices", list(benchmark.choices))
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where}: choices must be a list of texts, found {choices!r}")
    return choices


def _language(row, where) -> str:
    language = row.get("language", "")
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
