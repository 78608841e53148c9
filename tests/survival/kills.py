"""Kills runs at random moments, starts them again, and compares them with one left alone.

    python -m tests.survival.kills training --moments=25
    python -m tests.survival.kills evaluation --moments=30
    python -m tests.survival.kills soak --minutes=10

Prints what was tried, with the seed that tries it again; ends with status 1 where a run differs.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from qalign_jax.checkpoints.model import load_model

RECIPE = pathlib.Path(__file__).with_name("recipe.py")
SAVE_EVERY = 5  # steps, in that recipe
METRICS, ANSWERS = "*/metrics.jsonl", "evaluation/*/*/*.jsonl"
SPEEDS = ("tokens_per_second", "mfu")  # of a row of metrics.jsonl: all that may differ

# A process for each start, forked behind the imports, which take longer than these runs.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "qalign_jax.data.datasets.word_problems",
        "qalign_jax.recipe.parts",
        "qalign_jax.recipe.recipe",
    ]
)


class Run:
    """The run of a recipe in a workdir, started as often as it takes."""

    def __init__(self, workdir: pathlib.Path, *arguments: str, log: str = "", **environment: str):
        self.workdir, self.arguments, self.environment = workdir, arguments, environment
        self.log = workdir.with_name(log or f"{workdir.name}.log")

    @contextlib.contextmanager
    def started(self) -> Iterator[multiprocessing.Process]:
        """A process that runs the command; it is killed where it has not ended by itself."""
        process = _FORKS.Process(target=_command, args=(self,))
        process.start()
        try:
            yield process
        finally:
            process.kill()
            process.join()

    def wait(self, process, condition: Callable[..., bool], *values) -> None:
        """Returns when the condition is true of the values, or the process has ended."""
        while process.exitcode is None and not condition(*values):
            time.sleep(0.002)

    def finish(self) -> None:
        with self.started() as process:
            process.join()
        if process.exitcode:
            sys.exit(f"status {process.exitcode}: {self.log.read_text()[-4000:]}")

    def lines(self, files: str) -> int:
        """The whole lines of the files of a pattern, such as the rows of metrics."""
        return sum(file.read_bytes().count(b"\n") for file in self.workdir.glob(files))

    def saved(self) -> int:
        """The steps of all stages up to their newest whole checkpoints."""
        steps = [
            [int(step.name) for step in folder.iterdir() if step.name.isdigit()]
            for folder in self.workdir.glob("*/checkpoints")
        ]
        return sum(max(each) for each in steps if each)

    def has_more(self, files: str, count: int) -> bool:
        return self.lines(files) > count

    def is_reset(self, count: int) -> bool:
        """Whether the metrics have no row behind that of the newest checkpoint."""
        return self.lines(METRICS) <= count

    def has_saved(self, step: int) -> bool:
        return self.saved() >= step

    def is_saving(self) -> bool:
        """Whether a checkpoint is half written."""
        folders = self.workdir.glob("*/checkpoints/*")
        return any(not folder.name.isdigit() for folder in folders)

    def answers(self) -> dict[tuple[str, str], str]:
        """(file, id) -> the line of a finished answer.

        Raises:
          AssertionError: an answer is there twice.
        """
        found = {}
        for file in sorted(self.workdir.glob(ANSWERS)):
            for line in file.read_text().splitlines(keepends=True)[1:]:
                if line.endswith("\n"):
                    key = (str(file.relative_to(self.workdir)), json.loads(line)["id"])
                    assert key not in found, f"{key} was answered twice"
                    found[key] = line
        return found

    def outcome(self) -> dict[str, object]:
        """All that must not depend on how often the run was killed."""
        found: dict[str, object] = {}
        for file in sorted(self.workdir.glob(METRICS)):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            found[f"{file.parent.name} metrics"] = [
                {key: value for key, value in row.items() if key not in SPEEDS} for row in rows
            ]
            params = jax.tree.leaves_with_path(load_model(file.parent).params)
            found[f"{file.parent.name} weights"] = {
                jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
                for path, leaf in params
            }
        files = [*self.workdir.glob("*/results.json"), *self.workdir.glob(ANSWERS)]
        return found | {str(file.relative_to(self.workdir)): file.read_text() for file in files}


def _command(run: Run) -> None:
    output = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(run.environment)  # JAX reads it when it looks for devices
    sys.argv = ["run", f"--workdir={run.workdir}", *run.arguments]
    runpy.run_module("qalign_jax.run", run_name="__main__", alter_sys=True)


def kill_training(run: Run, moments: int, rng: random.Random) -> dict[str, int]:
    """Kills `run` so often: at any time of its start, behind a random step, and in a save.

    Returns:
      the kills of each kind, and the most steps that one of them lost.
    """
    tried = {"start": 0, "step": 0, "save": 0, "most steps lost": 0}
    for number in range(moments):
        kind = ("step", "save", "step", "save", "start")[number % 5]
        saved = run.saved()
        with run.started() as process:
            if kind == "start":
                process.join(rng.uniform(0, 4))
            else:
                # a start drops the rows behind its checkpoint; then they come anew
                run.wait(process, run.is_reset, saved)
                run.wait(process, run.has_more, METRICS, saved + rng.randint(0, 2 * SAVE_EVERY))
            if kind == "save":
                run.wait(process, run.is_saving)
                time.sleep(rng.uniform(0, 0.05))
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL, f"the run ended after {number} kills"
        tried[kind] += 1
        lost = run.lines(METRICS) - run.saved()
        tried["most steps lost"] = max(tried["most steps lost"], lost)
    return tried


def kill_evaluation(run: Run, moments: int, rng: random.Random) -> dict[str, int]:
    """Kills `run` so often while it answers; returns the kills, and the answers behind the last.

    Raises:
      AssertionError: a finished answer was lost, changed, or is there twice.
    """
    before = run.answers()
    for number in range(moments):
        with run.started() as process:
            behind = run.lines(ANSWERS) + rng.randint(0, 8)
            run.wait(process, run.has_more, ANSWERS, behind)
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL, f"all was answered after {number} kills"
        after = run.answers()
        gone = [key for key, line in before.items() if after.get(key) != line]
        assert not gone, f"kill {number}: {gone} of {len(before)} answers were lost or changed"
        before = after
    return {"kills": moments, "answers then": len(before)}


def soak(folder: pathlib.Path, minutes: float, rng: random.Random) -> dict[str, int]:
    """Trains the demo's models, shortened below five minutes, killed every 5 to 20 seconds.

    Returns:
      the kills, and how often the training was done; it begins anew until the time is over.

    Raises:
      AssertionError: a training differs from the one that was left alone.
    """
    stages = ("pretraining", "question_alignment", "response_alignment", "response_alignment_only")
    arguments = ["--config=configs/demo.py", f"--config.fast={minutes < 5}"]
    if minutes < 5:  # of the fast demo's few steps, most would be over before a kill
        steps = zip(stages, (86, 86, 16, 16), strict=True)
        arguments += [f"--config.{stage}.steps={number}" for stage, number in steps]
    arguments += [
        f"--config.cache_dir={folder / 'cache'}",
        "--stages=" + ",".join(("vocabulary", *stages)),
    ]
    arguments += [f"--config.{stage}.save_every=20" for stage in stages]
    alone = Run(folder / "alone", *arguments)
    alone.finish()
    until, tried = time.monotonic() + 60 * minutes, {"kills": 0, "trainings": 0}
    while time.monotonic() < until:
        run = Run(folder / f"killed_{tried['trainings']}", *arguments)
        ended = False
        while not ended:
            with run.started() as process:
                process.join(rng.uniform(5, 20) if time.monotonic() < until else None)
                ended = process.exitcode == 0
                assert process.exitcode in (None, 0), run.log.read_text()[-4000:]
            tried["kills"] += not ended
        compare(run, alone)
        tried["trainings"] += 1
    return tried


def compare(run: Run, alone: Run) -> None:
    """Raises an AssertionError that names all in which two runs differ."""
    found, expected = run.outcome(), alone.outcome()
    names = found.keys() | expected.keys()
    different = sorted(name for name in names if found.get(name) != expected.get(name))
    assert expected and not different, f"{run.workdir} and {alone.workdir} differ: {different}"


def left_alone(folder: pathlib.Path, moments: int) -> Run:
    """A run to the end that has work for so many kills, and whose cache the killed ones share."""
    arguments = [f"--config={RECIPE}", f"--config.cache_dir={folder / 'cache'}"]
    # most kills fall into the second stage, which trains an adapter
    arguments += ["--config.base.steps=20", f"--config.tuned.steps={20 + 6 * moments}"]
    arguments += [f"--config.evaluation.benchmarks.word_problems.count={2 * moments}"]
    run = Run(folder / "alone", *arguments)
    run.finish()
    return run


def killed_training(alone: Run, moments: int, rng: random.Random) -> dict[str, int]:
    """Kills a run while it trains, lets it end, and compares it with `alone`."""
    run = Run(alone.workdir.with_name("killed_in_training"), *alone.arguments)
    tried = kill_training(run, moments, rng)
    run.finish()
    compare(run, alone)
    return tried


def killed_evaluation(alone: Run, moments: int, rng: random.Random) -> dict[str, int]:
    """Kills a run while it evaluates the models of `alone`, lets it end, and compares the two."""
    run = Run(alone.workdir.with_name("killed_in_evaluation"), *alone.arguments)
    shutil.copytree(alone.workdir, run.workdir, ignore=shutil.ignore_patterns("evaluation"))
    tried = kill_evaluation(run, moments, rng)
    run.finish()
    compare(run, alone)
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("training", "evaluation", "soak"))
    parser.add_argument("--moments", type=int, default=25)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if asked.what == "soak":
            tried = soak(folder, asked.minutes, rng)
        else:
            kill = {"training": killed_training, "evaluation": killed_evaluation}[asked.what]
            tried = kill(left_alone(folder, asked.moments), asked.moments, rng)
    print(json.dumps(tried | {"seed": asked.seed}))


if __name__ == "__main__":
    main()
