"""The commands, each in a process of its own, without its own imports."""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

# Imports take seconds, most commands here do not: each runs in a fork of one process, after its
# imports. A fork runs and ends as `python -m` does, and one of ("-c", code) as `python -c`.
FORKS = """
import gc, json, os, runpy, sys
import qalign_jax.fits, qalign_jax.recipe.parts, qalign_jax.recipe.recipe, qalign_jax.reporting.page

gc.freeze()  # or each fork collects, as it ends, what was imported
ended = []
for number, (folder, (module, *arguments)) in enumerate(json.loads(sys.argv[1])):
    os.makedirs(folder, exist_ok=True)
    if not (child := os.fork()):
        os.dup2(os.open(f"{number}.stdout", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(f"{number}.stderr", os.O_WRONLY | os.O_CREAT), 2)
        os.chdir(folder)
        if module == "-c":
            exec(arguments[0], {"__name__": "__main__"})
            sys.exit()
        sys.argv = [module, *arguments]
        runpy.run_module(f"qalign_jax.{module}", run_name="__main__", alter_sys=True)
        sys.exit()
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ended))
"""


class Ended(NamedTuple):
    status: int
    stdout: str
    stderr: str
    folder: pathlib.Path


def run_commands(cases, folder, together="", **environment):
    """Runs `cases`, each a module and its arguments; returns case -> how it ended.

    Each has a folder of its own in `folder`, or all in turn the one of the name `together`.
    """
    folders = [together or str(number) for number in range(len(cases))]
    forks = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(list(zip(folders, cases, strict=True)))],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | environment,
        timeout=900,
    )
    assert forks.returncode == 0, forks.stderr
    return {
        case: Ended(
            status,
            (folder / f"{number}.stdout").read_text(),
            (folder / f"{number}.stderr").read_text(),
            folder / folders[number],
        )
        for number, (case, status) in enumerate(zip(cases, json.loads(forks.stdout), strict=True))
    }
