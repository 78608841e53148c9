"""Evaluates one system on one benchmark: prompts out, answers in, scores; resumable."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from qalign_jax import files, schema
from qalign_jax.data import prompts
from qalign_jax.decoding.system import Answer
from qalign_jax.decoding.turns import Turns
from qalign_jax.evaluation import scores
from qalign_jax.evaluation.benchmarks import Benchmark
from qalign_jax.evaluation.execution import Execution
from qalign_jax.evaluation.protocols import choice
from qalign_jax.evaluation.records import AnswerFile
from qalign_jax.progress import Progress

_SHOWN = ("id", "language", "question", "choices")  # of a problem, in its line of answers
LIKELIHOOD = "likelihood"  # the folder of choices' likelihoods, beside the answers

# What is written of an answer, by the index of its problem, in any order; and its tokens.
_Answers = Iterator[tuple[int, dict[str, Any], int]]


class Generator(Protocol):
    """A system that answers: decoding/system.py's TextGenerator."""

    def __call__(
        self, prompts: Sequence[str], max_new_tokens: int, *, turns: Turns | None = None
    ) -> Iterator[Answer]:
        """Yields answers, numbered by the index of the prompt, in any order."""
        ...

    def log_likelihoods(
        self, prompts: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float]]]:
        """Yields (index of the prompt, log-likelihood of each choice in nats), in any order."""
        ...


def evaluate(
    system: str,
    benchmark: Benchmark,
    problems: Sequence[Mapping[str, Any]],
    generate: Generator,
    template: str,
    directory: str | os.PathLike,
    settings: Mapping[str, Any],
    max_new_tokens: int = 0,
    execution: Execution | None = None,
    write: bool | None = None,
) -> scores.Scores:
    """Answers the problems without an answer, then scores all.

    Writes `<directory>/<system>/<benchmark>/<language>.jsonl`, and for multiple choice the choices'
    likelihoods into `likelihood/<language>.jsonl` there. A line holds the answer's trace where the
    generator gives one. All languages go to the generator in one
    stream, which keeps its decode slots full to the end.

    Args:
      problems: dicts of id, language, question, answer, and choices in multiple choice; ids are
        unique within a language.
      generate: called once, with the open prompts.
      template: a name in prompts.TEMPLATES, or the text with {instruction}.
      settings: whatever else shapes the answers (model fingerprint, dtype, alpha, ...), in JSON's
        types. It goes into every file's header, and a file with another header is refused.
      max_new_tokens: 0 takes the benchmark's; where code is executed, of every turn.
      execution: runs the code of answers while they are decoded.
      write: whether this process reads and writes the files; by default process 0 does.

    Returns:
      the scores; empty in a process that does not write.

    Raises:
      ValueError: before any decoding: no or bad problems, answers made with other settings, or a
        system's name that is none of a folder.
    """
    if not files.is_name(system):
        raise ValueError(f"a system cannot be named {system!r}: its name is a folder's")
    asked = _Asked(
        system, benchmark, problems, template, epath.Path(directory) / system / benchmark.name,
        jax.process_index() == 0 if write is None else write,
    )  # fmt: skip
    limit = max_new_tokens or benchmark.max_new_tokens
    header = {
        "system": system,
        "benchmark": benchmark.name,
        "template": prompts.template_text(template),
        "settings": dict(settings),
    }
    header_of_answers = header | {"max_new_tokens": limit}
    if execution:
        header_of_answers["executions"] = execution.turns.most
    texts = asked.texts
    by_choice = benchmark.protocol is choice
    answers = asked.files("", header_of_answers)
    likelihoods = asked.files(LIKELIHOOD, header) if by_choice else {}

    def generated(indices: Sequence[int]) -> _Answers:
        turns = {"turns": execution.turns} if execution else {}
        found = generate([texts[index] for index in indices], limit, **turns)
        for position, output, ids, trace, drafted in found:
            answer: dict[str, Any] = {"output": output, "tokens": len(ids)}
            if execution and answers:
                answer["executions"] = execution.take(position)
            if trace:
                answer["trace"] = trace.to_json()
            if drafted:
                answer["drafted"] = vars(drafted)
            yield position, answer, len(ids)

    def weighed(indices: Sequence[int]) -> _Answers:
        choices = [problems[index]["choices"] for index in indices]
        found = generate.log_likelihoods([texts[index] for index in indices], choices)
        for position, values in found:
            yield position, {"log_likelihoods": values}, 0

    judge = _Judge(benchmark.protocol.judge, execution)
    asked.take(answers, generated, judge)
    if by_choice:
        asked.take(likelihoods, weighed, _Judge(choice.judge_likelihoods))
    if not answers:
        return scores.Scores({}, {})
    return scores.scores(
        benchmark,
        asked.judged(answers, judge),
        asked.judged(likelihoods, _Judge(choice.judge_likelihoods)) if by_choice else {},
    )


@dataclasses.dataclass(frozen=True)
class _Judge:
    """A protocol's judgement of one line of answers."""

    judge: Callable[[Mapping[str, Any], str], dict[str, Any]]
    execution: Execution | None = None

    def __call__(self, answer: dict[str, Any]) -> None:
        """Adds the judgement, at first with algebra where code runs at all."""
        where = f"{answer['language']}, problem {answer['id']}"
        new = "correct" not in answer
        answer |= self.judge(answer, where)
        if new and self.execution and not answer["correct"] and self.execution.equal(answer):
            answer["equal"] = True
            answer |= self.judge(answer, where)


class _Asked:
    """The problems of one evaluation, checked, and their answer files."""

    def __init__(self, system, benchmark, problems, template, folder, write):
        self._name = f"{system} on {benchmark.name}"
        self._problems, self._folder, self._write = problems, folder, write
        self._order = check_problems(benchmark, problems)
        self.texts = [prompts.render(template, problem["question"]) for problem in problems]

    def files(self, subfolder: str, header: Mapping[str, Any]) -> dict[str, AnswerFile]:
        """The files of one kind of answers by language, read; none where this process writes none.

        Raises:
          ValueError: a file was made with other settings or for other problems.
        """
        files = {}
        for language in self._order if self._write else ():
            path = self._folder / subfolder / f"{language}.jsonl"
            files[language] = AnswerFile(path, {**header, "language": language})
            files[language].read({"language": schema.one_of(language)})
        for problem, text in zip(self._problems, self.texts, strict=True) if files else ():
            file = files[problem["language"]]
            there = file.answers.get(problem["id"])
            asked = (text, problem["answer"], problem.get("choices"))
            if there and tuple(map(there.get, ("prompt", "answer", "choices"))) != asked:
                raise ValueError(
                    f"{file.path}: problem {problem['id']} was another question when it was "
                    "answered; the benchmark's files have changed. Delete that file to answer "
                    "again, or take another workdir"
                )
        return files

    def take(
        self,
        files: Mapping[str, AnswerFile],
        answer: Callable[[Sequence[int]], _Answers],
        judge: _Judge,
    ) -> None:
        """Writes each answer to the open problems into its language's file as it comes."""
        open_problems = self._open_problems(files)
        if not open_problems:
            return
        problems, name = self._problems, self._name
        needed = {problems[index]["language"] for index in open_problems} & files.keys()
        progress = Progress(name, len(problems), len(problems) - len(open_problems), "answer")
        missing = set(open_problems)
        try:
            for language in needed:
                files[language].open()
            for position, fields, tokens in answer(open_problems):
                index = open_problems[position]
                problem = problems[index]
                if index not in missing:
                    raise RuntimeError(f"{name}: the generator answered prompt {position} twice")
                missing.remove(index)
                if files:
                    line = {key: problem[key] for key in _SHOWN if key in problem}
                    line |= {"prompt": self.texts[index], "answer": problem["answer"]} | fields
                    judge(line)
                    files[problem["language"]].add(line)
                progress.add(tokens)
        finally:
            for language in needed:
                files[language].close()
            progress.close()
        if missing:
            raise RuntimeError(f"{name}: the generator left {len(missing)} prompts unanswered")

    def judged(self, files: Mapping[str, AnswerFile], judge: _Judge) -> scores.Answers:
        """All answers by language and id, judged anew, so that scores are those of today."""
        found = {}
        for language, indices in self._order.items():
            file = files[language]
            ids = [self._problems[index]["id"] for index in indices]
            before = {problem_id: dict(file.answers[problem_id]) for problem_id in ids}
            for problem_id in ids:
                judge(file.answers[problem_id])
            there = list(file.answers.items())[: len(before)]
            if file.torn or there != list(before.items()):
                file.close(ids)
            found[language] = {problem_id: file.answers[problem_id] for problem_id in ids}
        return found

    def _open_problems(self, files: Mapping[str, AnswerFile]) -> list[int]:
        """Indices of the problems without an answer, the same list in every process."""
        done = np.zeros(len(self._problems), bool)
        for index, problem in enumerate(self._problems):
            file = files.get(problem["language"])
            there = file.answers.get(problem["id"], {}) if file else {}
            done[index] = "output" in there or "log_likelihoods" in there
        if jax.process_count() > 1:  # only process 0 has read the files
            done = np.asarray(multihost_utils.broadcast_one_to_all(done))
        return [int(index) for index in np.flatnonzero(~done)]


def check_problems(
    benchmark: Benchmark, problems: Iterable[Mapping[str, Any]]
) -> dict[str, list[int]]:
    """Language -> indices of its problems.

    Raises:
      ValueError: none, an id that occurs twice, or a problem that the protocol cannot judge.
    """
    found = collections.defaultdict(list)
    seen = set()
    for index, problem in enumerate(problems):
        key = (problem["language"], problem["id"])
        where = f"{benchmark.name}, {key[0]}, problem {key[1]}"
        if key in seen:
            raise ValueError(f"{where}: the id occurs twice; give every problem its own")
        seen.add(key)
        benchmark.protocol.check(problem, where)
        found[problem["language"]].append(index)
    if not found:
        raise ValueError(f"{benchmark.name} has no problems; check its path, languages and limit")
    benchmark.check_languages(list(found))
    if unaveraged := sorted(found.keys() - set(benchmark.averaged)):
        logging.info("%s: %s not in the average", benchmark.name, " ".join(unaveraged))
    return dict(found)
