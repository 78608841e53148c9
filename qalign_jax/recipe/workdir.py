"""The folder of a run: a folder a stage, with records of the stage's settings."""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath

from qalign_jax import files, schema
from qalign_jax import settings as settings_of
from qalign_jax.checkpoints.record import SETTINGS, Record, read_record, write_record
from qalign_jax.evaluation.records import check_systems
from qalign_jax.faults import lock


class Workdir:
    """Reads and writes the records of a run; process 0 alone writes.

    The folder of a training stage holds `stage.json`, the settings and sources of its weights: a
    run that differs there is refused. A finished stage of any kind has `done.json`: it runs again
    where its settings differ, or a stage that it reads from has run again.
    """

    def __init__(self, path):
        self.path = files.absolute(path)

    def __truediv__(self, name: str) -> epath.Path:
        return self.path / name

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other runs off the folder while the context is open; process 0 holds the lock.

        Raises:
          ValueError: on entry, where another run holds it.
        """
        if jax.process_index():
            return contextlib.nullcontext()
        remedy = "wait for it to end, or take another --workdir"
        return lock.hold(self.path / "run.lock", remedy)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a file of the run, replacing an earlier one at once."""
        if jax.process_index() == 0:
            files.write_json(self.path / name, content)

    def is_done(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether a stage was finished with these settings, and no source has run again since."""
        file = self.path / name / "done.json"
        if not file.exists():
            return False
        remedy = "delete it and start the same command again"
        done = files.read_object(file, remedy)
        schema.check(done, {"after?": {...: schema.TEXT}}, str(file), remedy)
        again = [
            source
            for source, ended in done.get("after", {}).items()
            if (now := self._ended(source)) and now != ended
        ]
        return done.get(SETTINGS) == settings and not again

    def finish(
        self,
        name: str,
        settings: Mapping[str, Any],
        summary: Mapping[str, Any],
        sources: Iterable[str],
    ) -> None:
        """Writes done.json; `sources` are the stages that the stage has read from."""
        after = {source: self._ended(source) for source in sources}
        self.write_json(f"{name}/done.json", {SETTINGS: settings, "after": after, **summary})

    def _ended(self, name: str) -> str:
        """Changes whenever the stage has run again; "" while it has not finished."""
        file = self.path / name / "done.json"
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else ""

    def check_settings(self, name: str, settings: Mapping[str, Any]) -> None:
        """Raises a ValueError where the stage has a record of other settings."""
        if record := read_record(self.path / name):
            self._refuse(name, "with other settings", record.settings, settings)

    def record(self, name: str, record: Record) -> None:
        """Writes stage.json, or compares its sources with those that are recorded already.

        Raises:
          ValueError: a source is another one now.
        """
        if before := read_record(self.path / name):
            made = "from other content, as the fingerprints of its sources say"
            self._refuse(name, made, before.sources, record.sources)
        elif jax.process_index() == 0:
            write_record(self.path / name, record)

    def results(self, names: Iterable[str]) -> dict[str, Any]:
        """The systems of those of the stages that scored some, by name."""
        found = {}
        for name in names:
            if (file := self.path / name / "results.json").exists():
                remedy = "delete it and done.json beside it, and start the same command again"
                content = files.read_object(file, remedy)
                systems = content.get("systems", {})  # an analysis has none
                if not content or not isinstance(systems, dict):
                    raise ValueError(f"{file}: no object of systems; {remedy}")
                check_systems(systems, str(file), remedy)
                found |= systems
        return found

    def _refuse(
        self, name: str, made: str, before: Mapping[str, Any], now: Mapping[str, Any]
    ) -> None:
        if found := settings_of.differences(before, now):
            raise ValueError(
                f"{self.path / name} was made {made}: {found}. Take another "
                "--workdir, or delete that folder (and those of the stages after it)"
            )
