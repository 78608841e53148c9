"""A recipe in a workdir: the stages in order, skipped where finished, resumed where not.

So any run can be started again by the same command. A recipe knows no kind of stage.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from qalign_jax import files, mistakes
from qalign_jax.ahead.jobs import Workload, check_jobs
from qalign_jax.checkpoints.card import hub_remedy
from qalign_jax.checkpoints.record import Record, read_record
from qalign_jax.faults import storage
from qalign_jax.models.presets import preset
from qalign_jax.parallel import barrier
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe.stages.base import Stage, check_path, find_stages, key_of, make_run
from qalign_jax.recipe.weights import RANDOM, Source
from qalign_jax.reporting import page
from qalign_jax.training.profile import Profile


class Recipe:
    """The stages of one config in one workdir.

    `on_devices`: meshes and models must fit the devices that are here.

    Raises:
      ValueError: all that is wrong with the config: stages that make no sense or are not
        described, weights and data that come from nowhere, meshes and models that do not fit, a
        workdir whose training stages were made with other settings.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir,
        only: Sequence[str] = (),
        profile: Profile | None = None,
        on_devices: bool = True,
    ):
        if isinstance(only, str):
            raise ValueError(f"stages={only!r} is one text; give a list of names, [{only!r}]")
        check_path("workdir", os.fspath(workdir))
        self.config, self._on_devices = config, on_devices
        self.stages, found = find_stages(config)
        if not self.stages:
            mistakes.refuse(found)
        named = self._named = config.to_dict()["stages"]
        for name in only:
            if name not in named:
                found.append(f"no stage {name!r}; the recipe's stages are {', '.join(named)}")
        self.chosen = [stage for stage in self.stages.values() if not only or stage.name in only]
        self.shared = make_run(config, self.stages, workdir, profile)
        self.workdir = self.shared.workdir
        if files.is_remote(self.workdir.path):
            mistakes.refuse(found)  # before anything is asked of the bucket
        unsound = set(named) - self.stages.keys()
        for stage in self.stages.values():
            sources = [each for source in stage.sources() for each in source.each()]
            wrong: list[str] = []
            for source in sources:
                wrong += mistakes.of("", self._check_source, stage, source)
            sound = not wrong and not unsound & {source.name for source in sources}
            if not sound:
                unsound.add(stage.name)
            found += wrong + mistakes.of("", self._check, stage, sound)
        mistakes.refuse(found)

    def run(self) -> dict[str, Any]:
        """Runs the chosen stages in order; returns stage -> "done" or "open", and the results."""
        self.workdir.write_json("config.json", self.config.to_dict())
        checked = False
        for stage in self.chosen:
            # between barriers, so that all hosts read the same answer
            barrier.wait(f"{stage.name} or not")
            done = self.is_done(stage)
            if not done and stage.USES_DEVICES and not checked:
                self.prepare()  # all input is read before the first device works
                checked = True
            barrier.wait(f"{stage.name} begins")
            if done:
                self._check_parent(stage)
                logging.info("%s: finished before, skipped", stage.name)
                continue
            logging.info("%s: begins", stage.name)
            began = time.monotonic()
            summary = dict(stage.run(self.shared) or {})
            summary["seconds"] = round(time.monotonic() - began, 1)
            self.workdir.finish(stage.name, stage.settings(), summary, self._read_by(stage))
            logging.info("%s: done in %.0f s", stage.name, summary["seconds"])
        barrier.wait("all stages")
        return {
            "stages": {
                stage.name: "done" if self.is_done(stage) else "open"
                for stage in self.stages.values()
            },
            "systems": self.workdir.results(self.stages),
        }

    def prepare(self) -> dict[str, dict[str, Any]]:
        """Reads and builds the data of the chosen stages that are open; stage -> statistics.

        A stage that uses no device, such as a tokenizer, must have run.

        Raises:
          ValueError: all data that cannot be read.
        """
        found, wrong = {}, []
        for stage in self.chosen:
            if stage.USES_DEVICES and not self.is_done(stage):
                try:
                    found[stage.name] = stage.prepare(self.shared)
                except ValueError as error:
                    wrong += mistakes.lines_of(error)
        mistakes.refuse(wrong)
        return {name: statistics for name, statistics in found.items() if statistics}

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage is finished, with its present settings; else it runs again."""
        return self.workdir.is_done(stage.name, stage.settings())

    def _read_by(self, stage: Stage) -> list[str]:
        """The stages whose results it sums up; weights have records that say more."""
        if stage.starts_from:
            return []
        names = {each.name for source in stage.sources() for each in source.each()}
        return sorted(names & self.stages.keys())

    def _check(self, stage: Stage, sound: bool) -> None:
        """Raises a ValueError for all that is wrong with a stage.

        Its model is known where its sources, and those that they start from, are `sound`.
        """
        self.workdir.check_settings(stage.name, stage.settings())
        if stage not in self.chosen or self.is_done(stage):
            return
        found = mistakes.of("", stage.check_inputs, self.shared)
        if sound and stage.USES_DEVICES and self._on_devices:
            found += mistakes.of("", self._check_devices, stage)
        mistakes.refuse(found)

    def _check_devices(self, stage: Stage) -> None:
        """Makes the checks of `fits` on the devices here."""
        where = "mesh: " if stage.mesh == self.config.mesh else f"{stage.name}.mesh: "
        mesh = mistakes.of("", make_mesh, stage.mesh)
        unknown = Workload(prompt_tokens=1)  # prompts are measured when they are read
        jobs = stage.jobs(self.shared, unknown)
        found = mistakes.of("", check_jobs, stage.name, jobs, jax.devices())
        others = [line for line in found if not line.endswith(tuple(mesh))]
        mistakes.refuse([f"{where}{line}" for line in mesh] + others)

    def _check_parent(self, stage: Stage) -> None:
        """Raises a ValueError where a finished stage started from weights that its parent, another
        stage, has no more: the parent was trained again.
        """
        source, record = stage.starts_from, read_record(self.workdir / stage.name)
        if record and source and source.name in self.stages:
            try:
                parent = self.shared.weights.resolve(source).fingerprint()
            except ValueError:
                return  # its checkpoints were deleted, to save space
            sources = {**record.sources, "init": parent}
            self.workdir.record(stage.name, Record(record.settings, sources))

    def _check_source(self, stage: Stage, source: Source) -> None:
        """Raises a ValueError for a source from which a stage cannot take what it needs."""
        if source.name == RANDOM:
            found = mistakes.of(f"{stage.name}: ", preset, source.preset)
            if not self.config.tokenizer:
                found.append(
                    "tokenizer='': random weights have none, so --config.tokenizer must name a "
                    "tokenizer.model or a directory with one"
                )
            mistakes.refuse(found)
        elif source.name in self.stages:
            needed = self.stages[source.name]
            if stage in self.chosen and needed not in self.chosen and not self.is_done(needed):
                raise ValueError(
                    f"{stage.name} needs {needed.name}, which is not finished in "
                    f"{self.workdir.path}; run it first (leave --stages out, or name it there too)"
                )
        elif source.name not in self._named:
            if not source.name or not epath.Path(source.name).exists():
                raise ValueError(
                    f"{key_of(stage, source.name)}={source.name!r} is neither a stage "
                    f"({', '.join(self._named)}) nor a file or directory"
                    f"{hub_remedy(source.name)}"
                )


def folder_of(config: ConfigDict, workdir: str | os.PathLike) -> str:
    """The workdir, runs/<recipe> by default.

    Raises:
      ValueError: it or the cache cannot be written, or the recipe's name is no folder's.
    """
    workdir = os.fspath(workdir)
    if not workdir:
        if not files.is_name(config.name):
            raise ValueError(
                f"name={config.name!r} is no folder's name; give the run's folder with --workdir"
            )
        workdir = f"runs/{config.name}"
    for key, folder in {"workdir": workdir, "cache_dir": config.cache_dir}.items():
        if not files.is_remote(folder):
            storage.check_folder(folder, key)
    return workdir


def run(
    config: ConfigDict,
    workdir: str | os.PathLike = "",
    stages: Sequence[str] = (),
    profile: str = "",
) -> dict[str, Any]:
    """Runs a recipe and writes its report; what is finished is skipped.

    Args:
      config: the recipe, as a file in configs/ returns it.
      workdir: the run's folder; runs/<recipe> by default.
      stages: only these; all by default.
      profile: the steps of every training stage to trace, like 10:15.

    Returns:
      {"workdir", "stages": {stage: "done"}, "systems": as in results.json, "report": path}.

    Raises:
      ValueError: a recipe that cannot run, or a workdir in which another run works, before any
        device work.
      FloatingPointError: a loss that is not finite.
      StorageFailed: there is no space; the same run goes on when there is.
    """
    workdir = folder_of(config, workdir)
    steps = Profile.parse(profile) if profile else None
    recipe = Recipe(config, workdir, stages, steps)
    with recipe.workdir.held():
        outcome = recipe.run()
        report = str(page.write(workdir)) if jax.process_index() == 0 else None
    return {"workdir": workdir, **outcome, "report": report}
