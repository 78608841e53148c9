"""A checkout with launch/ and a small program for qalign_jax.run, a fake cloud, and the linters."""

import os
import pathlib
import shutil
import sys
import sysconfig

import pytest

from tests.launch.cloud import ROOT, Cloud, commit, write_program

# all that worker.sh uses of the image beside python3, and bash and env of the commands
TOOLS = (
    "bash", "cat", "cut", "date", "env", "flock", "gzip", "head", "ln", "mkdir", "mv", "nohup",
    "readlink", "rm", "setsid", "sleep", "sort", "tail", "tar", "touch",
)  # fmt: skip

# One line of `plan` a start: the exit status, and what it says; or "wait", for the file `go`.
RUN = """
import os, pathlib, sys, time
cloud = pathlib.Path(os.environ["FAKE_CLOUD"])
starts = cloud / ("starts-" + os.environ["HOSTNAME"])
number = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    print(os.environ.get("TOKEN", ""), *sys.argv[1:], sep="|", file=file)
status, _, text = (cloud / "plan").read_text().splitlines()[number].partition(" ")
while status == "wait" and not (cloud / "go").exists():
    time.sleep(0.05)
print(text or "all is done")
sys.exit(0 if status == "wait" else int(status))
"""

# Makes no environment but this interpreter, and writes down what it would install.
UV = """#!/usr/bin/env bash
case $1 in
  --version) echo uv 0.9.0 ;;
  venv)
    mkdir -p "${!#}/bin"
    printf '#!/usr/bin/env bash\\nexec %s "$@"\\n' PYTHON > "${!#}/bin/python"
    /bin/chmod +x "${!#}/bin/python" ;;
esac
echo "$*" >> "$HOME/uv.log"
"""


@pytest.fixture
def cloud(tmp_path):
    folder, checkout = tmp_path / "cloud", tmp_path / "checkout"
    for path in (folder / "bin", folder / "worker-bin", checkout / "qalign_jax"):
        path.mkdir(parents=True)
    shutil.copytree(ROOT / "launch", checkout / "launch")
    (checkout / "qalign_jax/run.py").write_text(RUN)
    (checkout / "constraints.txt").touch()
    commit(checkout)
    fake = pathlib.Path(__file__).with_name("fake_cloud.py")
    for name in ("gcloud", "kubectl", "xpk"):
        program = f'#!/bin/sh\nexec {sys.executable} -I -S {fake} {name} "$@"\n'
        write_program(folder / "bin" / name, program)
    for name in TOOLS:
        (folder / "worker-bin" / name).symlink_to(shutil.which(name))
    write_program(folder / "worker-bin/uv", UV.replace("PYTHON", sys.executable))
    record = '#!/usr/bin/env bash\necho "$*" >> "$HOME/sudo.log"\n'
    write_program(folder / "worker-bin/sudo", record)
    (folder / "answers.json").write_text("[]")
    made = Cloud(folder, checkout)
    made.plan("0")
    yield made
    (folder / "go").touch()  # ends the runs that wait
    for pid in folder.glob("workers/*/qalign_jax/run.pid"):
        made.wait_for(pid.with_name("run.exit"))


@pytest.fixture(scope="session")
def linter():
    """Finds a linter of the test extra; where there is none, CI fails and other machines skip."""

    def find(name: str) -> str:
        beside = shutil.which(name, path=sysconfig.get_path("scripts"))
        if found := beside or shutil.which(name):
            return found
        if os.environ.get("CI"):
            raise FileNotFoundError(name)
        pytest.skip(f"no {name}: pip install -e '.[test]'")

    return find
