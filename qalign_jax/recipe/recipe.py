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

from qalign_jax.ahead.jobs import Workload, check_jobs
from qalign_jax.checkpoints.record import Record, read_record
from qalign_jax.models.presets import preset
from qalign_jax.parallel import hosts
from qalign_jax.recipe.stages.base import Stage, choose, make_run, read_stages
from qalign_jax.recipe.weights import RANDOM, Source
from qalign_jax.reporting import page
from qalign_jax.training.profile import Profile


class Recipe:
    """The stages of one config in one workdir.

    Raises:
      ValueError: a stage that makes no sense or is not described, weights that come from nowhere,
        or a workdir whose training stages were made with other settings.
    """

    def __init__(
        self, config: ConfigDict, workdir, only: Sequence[str] = (), profile: Profile | None = None
    ):
        self.config = config
        self.stages = read_stages(config)
        self.chosen = choose(self.stages, only)
        self.shared = make_run(config, self.stages, workdir, profile)
        self.workdir = self.shared.workdir
        for stage in self.stages.values():
            for source in stage.sources():
                self._check_source(stage, source)
            self.workdir.check_settings(stage.name, stage.settings())

    def run(self) -> dict[str, Any]:
        """Runs the chosen stages in order; returns stage -> "done" or "open", and the results."""
        self.workdir.write_json("config.json", self.config.to_dict())
        checked = False
        for stage in self.chosen:
            # between barriers, so that all hosts read the same answer
            hosts.barrier(f"{stage.name} or not")
            done = self.is_done(stage)
            if not done and stage.USES_DEVICES and not checked:
                self.check_devices()
                self.prepare()  # all input is read before the first device works
                checked = True
            hosts.barrier(f"{stage.name} begins")
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
        hosts.barrier("all stages")
        return {
            "stages": {
                stage.name: "done" if self.is_done(stage) else "open"
                for stage in self.stages.values()
            },
            "systems": self.workdir.results(self.stages),
        }

    def check_devices(self) -> None:
        """Raises a ValueError where devices, mesh, rows and model of a stage do not fit together.

        These are the checks of `fits`, on the devices here.
        """
        unknown = Workload(prompt_tokens=1)  # prompts are measured when they are read
        for stage in self._open_stages():
            check_jobs(stage.name, stage.jobs(self.shared, unknown), jax.devices())

    def prepare(self) -> dict[str, dict[str, Any]]:
        """Reads and builds the data of the chosen stages that are open; stage -> statistics.

        A stage that uses no device, such as a tokenizer, must have run.
        """
        found = {stage.name: stage.prepare(self.shared) for stage in self._open_stages()}
        return {name: statistics for name, statistics in found.items() if statistics}

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage is finished, with its present settings; else it runs again."""
        return self.workdir.is_done(stage.name, stage.settings())

    def _read_by(self, stage: Stage) -> list[str]:
        """The stages whose results it sums up; weights have records that say more."""
        if stage.starts_from:
            return []
        return sorted({source.name for source in stage.sources()} & self.stages.keys())

    def _open_stages(self) -> list[Stage]:
        return [s for s in self.chosen if s.USES_DEVICES and not self.is_done(s)]

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
        if source.name == RANDOM:
            preset(source.preset)  # raises on a name that is not in the table
            if not self.config.tokenizer:
                raise ValueError(
                    f"{stage.name} starts from random weights, which have no tokenizer: "
                    "--config.tokenizer must name a tokenizer.model or a directory with one"
                )
        elif source.name in self.stages:
            needed = self.stages[source.name]
            if stage in self.chosen and needed not in self.chosen and not self.is_done(needed):
                raise ValueError(
                    f"{stage.name} needs {needed.name}, which is not finished in "
                    f"{self.workdir.path}; run it first (leave --stages out, or name it there too)"
                )
        elif not epath.Path(source.name).exists():
            raise ValueError(
                f"{stage.name} needs {source.name!r}, which is neither a stage "
                f"({', '.join(self.stages)}) nor a file or directory"
            )


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
      ValueError: a recipe that cannot run, before any device work.
      FloatingPointError: a loss that is not finite.
    """
    workdir = os.fspath(workdir) or f"runs/{config.name}"
    steps = Profile.parse(profile) if profile else None
    outcome = Recipe(config, workdir, stages, steps).run()
    report = str(page.write(workdir)) if jax.process_index() == 0 else None
    return {"workdir": workdir, **outcome, "report": report}
