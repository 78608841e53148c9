"""The scripts of launch/ in a checkout of their own, with fake programs on PATH."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_program(path: pathlib.Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def commit(folder: pathlib.Path) -> None:
    for words in (
        ("init", "--quiet"),
        ("add", "--all"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=a"),
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)


@dataclasses.dataclass
class Cloud:
    """The scripts of a checkout, started with fake programs on PATH."""

    folder: pathlib.Path
    checkout: pathlib.Path
    hosts: int = 1

    def answer(self, match: str, stderr: str = "", **more) -> None:
        """The next call with `match` in its words fails with `stderr`, or gives `more`."""
        path = self.folder / "answers.json"
        answer = {"match": match, "stderr": stderr, "status": 1 if stderr else 0, **more}
        path.write_text(json.dumps([*json.loads(path.read_text()), answer]))

    def plan(self, *starts: str) -> None:
        (self.folder / "plan").write_text("\n".join(starts))

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        return kept | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_CLOUD": str(self.folder),
            "FAKE_HOSTS": str(self.hosts),
            "FAKE_WORKER_PATH": str(self.folder / "worker-bin"),
            "TMPDIR": str(self.folder),
        }

    def run(self, script: str, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of a script."""
        found = subprocess.run(
            [self.checkout / "launch" / script, *arguments], env=self.environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return found.returncode, found.stdout, found.stderr

    @contextlib.contextmanager
    def started(self, script: str, *arguments: str):
        """A script that runs beside the test, and is killed with it."""
        command = [self.checkout / "launch" / script, *arguments]
        with subprocess.Popen(
            command, env=self.environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def calls(self, word: str = "") -> list[list[str]]:
        """The recorded calls, those with `word` among their first words."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if not word or word in call[:5]]

    def starts(self, worker: int = 0) -> list[str]:
        """The flags of every start of the run on a worker."""
        path = self.folder / f"starts-w-{worker}"
        return path.read_text().splitlines() if path.exists() else []

    def home(self, worker: int = 0) -> pathlib.Path:
        return self.folder / "workers" / f"w-{worker}"

    def wait_for(self, path: pathlib.Path) -> None:
        for _ in range(200):
            if path.exists():
                return
            time.sleep(0.05)
        raise AssertionError(f"{path} does not come")
