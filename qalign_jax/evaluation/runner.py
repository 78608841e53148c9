"""Evaluates one system on one benchmark: prompts out, answers in, scores; resumable."""

import collections
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from qalign_jax.data import prompts
from qalign_jax.evaluation import statistics
from qalign_jax.evaluation.benchmarks import Benchmark
from qalign_jax.evaluation.records import AnswerFile
from qalign_jax.progress import Progress

# (prompts, max_new_tokens) -> (index of the prompt, text, ids generated), in any order.
Generator = Callable[[list[str], int], Iterator[tuple[int, str, Sequence[int]]]]


def evaluate(
    system: str,
    benchmark: Benchmark,
    problems: Sequence[Mapping[str, str]],
    generate: Generator,
    template: str,
    directory: str | os.PathLike,
    settings: Mapping[str, Any],
    max_new_tokens: int = 0,
    write: bool | None = None,
) -> dict[str, Any]:
    """Answers the problems without an answer, then scores all.

    Writes `<directory>/<system>/<benchmark>/<language>.jsonl`. All languages go to the generator
    in one stream, which keeps its decode slots full to the end.

    Args:
      problems: dicts of id, language, question, answer; ids are unique within a language.
      generate: called once, with the open prompts; it yields answers as they finish.
      template: a name in prompts.TEMPLATES, or the text with {instruction}.
      settings: whatever else shapes the answers (model fingerprint, dtype, alpha, ...), in JSON's
        types. It goes into every file's header, and a file with another header is refused.
      max_new_tokens: 0 takes the benchmark's.
      write: whether this process reads and writes the files; by default process 0 does.

    Returns:
      {"<language>": .., "average": .., "non_english": .., "sound": {the same}}, percentages; empty
      in a process that does not write.

    Raises:
      ValueError: before any decoding: no or bad problems, or answers made with other settings.
    """
    max_new_tokens = max_new_tokens or benchmark.max_new_tokens
    write = jax.process_index() == 0 if write is None else write
    by_language = _by_language(benchmark, problems)
    texts = [prompts.render(template, problem["question"]) for problem in problems]
    files = {}
    if write:
        folder = epath.Path(directory) / system / benchmark.name
        for language in by_language:
            header = {
                "system": system,
                "benchmark": benchmark.name,
                "language": language,
                "template": prompts.template_text(template),
                "max_new_tokens": max_new_tokens,
                "settings": dict(settings),
            }
            files[language] = AnswerFile(folder / f"{language}.jsonl", header)
            files[language].read()
        _check_same_problems(files, problems, texts)
    open_problems = _open_problems(files, problems)
    order = {
        language: [problems[index]["id"] for index in indices]
        for language, indices in by_language.items()
    }
    if open_problems:
        name = f"{system} on {benchmark.name}"
        answers = generate([texts[index] for index in open_problems], max_new_tokens)
        _take(benchmark, answers, open_problems, problems, texts, files, name)
    if not write:
        return {}
    return _score(benchmark, files, order)


def _by_language(benchmark, problems) -> dict[str, list[int]]:
    """Language -> indices of its problems; checks what can be checked before decoding."""
    if not problems:
        raise ValueError(f"{benchmark.name} has no problems; check its path, languages and limit")
    found = collections.defaultdict(list)
    seen = set()
    for index, problem in enumerate(problems):
        key = (problem["language"], problem["id"])
        where = f"{benchmark.name}, {key[0]}, problem {key[1]}"
        if key in seen:
            raise ValueError(f"{where}: the id occurs twice; give every problem its own")
        seen.add(key)
        benchmark.protocol.read_gold(problem["answer"], where)
        found[problem["language"]].append(index)
    benchmark.check_languages(list(found))
    return dict(found)


def _check_same_problems(files, problems, texts) -> None:
    for problem, text in zip(problems, texts, strict=True):
        file = files[problem["language"]]
        there = file.answers.get(problem["id"])
        if there and (there.get("prompt"), there.get("answer")) != (text, problem["answer"]):
            raise ValueError(
                f"{file.path}: problem {problem['id']} was another question when it was answered; "
                "the benchmark's files have changed. Delete that file to answer again, or take "
                "another workdir"
            )


def _open_problems(files, problems) -> list[int]:
    """Indices of the problems without an answer, the same list in every process."""
    done = np.zeros(len(problems), bool)
    for index, problem in enumerate(problems):
        file = files.get(problem["language"])
        done[index] = file is not None and "output" in file.answers.get(problem["id"], {})
    if jax.process_count() > 1:  # only process 0 has read the files
        done = np.asarray(multihost_utils.broadcast_one_to_all(done))
    return [int(index) for index in np.flatnonzero(~done)]


def _take(benchmark, answers, open_problems, problems, texts, files, name) -> None:
    """Writes each answer into its language's file as it comes."""
    needed = {problems[index]["language"] for index in open_problems} & files.keys()
    progress = Progress(name, len(problems), len(problems) - len(open_problems), "answer")
    missing = set(open_problems)
    try:
        for language in needed:
            files[language].open()
        for position, output, ids in answers:
            index = open_problems[position]
            problem = problems[index]
            if index not in missing:
                raise RuntimeError(f"{name}: the generator answered prompt {position} twice")
            missing.remove(index)
            if files:
                answer = {
                    **{key: problem[key] for key in ("id", "language", "question")},
                    "prompt": texts[index],
                    "output": output,
                    "answer": problem["answer"],
                    "tokens": len(ids),
                }
                files[problem["language"]].add(answer | _judged(benchmark, answer))
            progress.add(len(ids))
    finally:
        for language in needed:
            files[language].close()
        progress.close()
    if missing:
        raise RuntimeError(f"{name}: the generator left {len(missing)} prompts without an answer")


def _score(benchmark, files, order) -> dict[str, Any]:
    """Reads every output anew, so that the scores are those of today's readers."""
    correct, sound = {}, {}
    for language, problem_ids in order.items():
        file = files[language]
        before = {problem_id: dict(file.answers[problem_id]) for problem_id in problem_ids}
        for problem_id in problem_ids:
            file.answers[problem_id] |= _judged(benchmark, file.answers[problem_id])
        there = list(file.answers.items())[: len(before)]
        if file.torn or there != list(before.items()):
            file.close(problem_ids)
        correct[language] = [file.answers[problem_id]["correct"] for problem_id in problem_ids]
        sound[language] = [file.answers[problem_id]["sound_correct"] for problem_id in problem_ids]
    if unaveraged := sorted(correct.keys() - set(benchmark.averaged)):
        logging.info("%s: %s not in the average", benchmark.name, " ".join(unaveraged))
    return {
        **statistics.accuracies(correct, benchmark.averaged),
        "sound": statistics.accuracies(sound, benchmark.averaged),
    }


def _judged(benchmark: Benchmark, answer: Mapping[str, Any]) -> dict[str, Any]:
    where = f"{answer['language']}, problem {answer['id']}"
    return benchmark.protocol.judge(answer["output"], answer["answer"], answer["language"], where)
