"""gcloud, kubectl and xpk as the tests of launch/ put them on PATH.

Called as PROGRAM ARGUMENTS.. with the folder of a `Cloud` (conftest.py) in FAKE_CLOUD: records the
call, gives the next scripted answer that matches it, and else does what the real one does, with
folders for the workers, whose commands are run.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
READY = {"tpu-vm": "READY", "queued-resources": "ACTIVE"}


def scripted(words: str) -> dict | None:
    """The first answer whose `match` is in the call; an answer is given once."""
    answers = json.loads((CLOUD / "answers.json").read_text())
    for index, answer in enumerate(answers):
        if answer["match"] in words:
            del answers[index]
            (CLOUD / "answers.json").write_text(json.dumps(answers))
            return answer
    return None


def homes(worker: str) -> list[pathlib.Path]:
    every = sorted((CLOUD / "workers").iterdir())
    return every if worker == "all" else [every[int(worker)]]


def kill_runs() -> None:
    for pid in CLOUD.glob("workers/*/qalign_jax/run.pid"):
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def ssh(home: pathlib.Path, command: str) -> int:
    environment = {
        "HOME": str(home), "HOSTNAME": home.name, "FAKE_CLOUD": str(CLOUD),
        "PATH": os.environ["FAKE_WORKER_PATH"],
    }  # fmt: skip
    return subprocess.run(["bash", "-c", command], cwd=home, env=environment).returncode


def tpus(kind: str, verb: str, *arguments: str) -> int:
    state, options = CLOUD / "state", dict(arg.split("=", 1) for arg in arguments if "=" in arg)
    missing = not state.exists()
    if missing and verb != "create":
        print("ERROR: (gcloud) NOT_FOUND: Resource was not found", file=sys.stderr)
        return 1
    if verb == "describe":
        print(state.read_text())
    elif verb == "create":
        if not missing:
            print("ERROR: ALREADY_EXISTS: the resource already exists", file=sys.stderr)
            return 1
        state.write_text(READY[kind])
        for index in range(int(os.environ["FAKE_HOSTS"])):
            (CLOUD / f"workers/w-{index}").mkdir(parents=True)
    elif verb == "delete":
        kill_runs()
        state.unlink()
        shutil.rmtree(CLOUD / "workers")
    elif state.read_text() != READY[kind]:
        print("ssh: connect to host port 22: Connection refused", file=sys.stderr)
        return 255
    elif verb == "scp":
        for home in homes(options["--worker"]):
            shutil.copy(arguments[0], home)
    elif verb == "ssh":
        statuses = [ssh(home, options["--command"]) for home in homes(options["--worker"])]
        return next((status for status in statuses if status), 0)
    return 0


def main(program: str, *arguments: str) -> int:
    given = sys.stdin.read() if "--filename=-" in arguments else ""
    with open(CLOUD / "calls.jsonl", "a") as calls:
        print(json.dumps([program, *arguments]), file=calls)
    if given:
        (CLOUD / "applied").write_text(given)
    if answer := scripted(" ".join((program, *arguments))):
        if "state" in answer:
            (CLOUD / "state").write_text(answer["state"])
            kill_runs()
        print(answer.get("stdout", ""), end="")
        print(answer.get("stderr", ""), end="", file=sys.stderr)
        return answer.get("status", 0)
    if program == "gcloud":
        return tpus(*arguments[2:])
    return 0


sys.exit(main(*sys.argv[1:]))
