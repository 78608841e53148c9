"""Runs a recipe's stages, in order, resuming what was stopped.

python -m qalign_jax.run --config=configs/math_cot.py:llama2_7b --workdir=gs://bucket/qalign7b
"""

import os
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from qalign_jax import cli
from qalign_jax.parallel import barrier


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
    import jax

    from qalign_jax.recipe.recipe import Recipe
    from qalign_jax.reporting import page
    from qalign_jax.training.profile import Profile

    workdir = os.fspath(workdir) or f"runs/{config.name}"
    steps = Profile.parse(profile) if profile else None
    outcome = Recipe(config, workdir, stages, steps).run()
    report = str(page.write(workdir)) if jax.process_index() == 0 else None
    return {"workdir": workdir, **outcome, "report": report}


def define_flags() -> None:
    cli.define_recipe()
    flags.declare_key_flag("config")
    flags.DEFINE_string(
        "workdir",
        "",
        "The run's folder, local or gs://bucket/path; the same command resumes a run that was "
        "stopped. runs/<recipe> by default.",
    )
    flags.DEFINE_list("stages", [], "Run only these stages, for example --stages=evaluation.")
    flags.DEFINE_string(
        "profile",
        "",
        "Steps of every training stage to trace, like 10:15; the trace is in the stage's "
        "tensorboard/ folder, for TensorBoard and Perfetto.",
    )
    flags.DEFINE_string(
        "coordinator",
        "",
        "HOST:PORT of process 0, for several hosts that JAX does not find itself.",
    )
    flags.DEFINE_integer("processes", 1, "How many processes, with --coordinator.")
    flags.DEFINE_integer("process", 0, "The number of this one, with --coordinator.")
    flags.DEFINE_integer(
        "join_timeout_s",
        barrier.JOIN_TIMEOUT_S,
        "Seconds to wait at the start for the processes of the other hosts.",
        lower_bound=1,
    )


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    from qalign_jax.parallel import hosts

    values = flags.FLAGS
    hosts.initialize(values.coordinator, values.processes, values.process, values.join_timeout_s)
    outcome = run(values.config, values.workdir, values.stages, values.profile)
    if outcome["report"] and outcome["systems"]:
        from qalign_jax.reporting import tables

        print(tables.text(outcome["systems"]), end="\n\n")
    return outcome


if __name__ == "__main__":
    cli.main(_command, define_flags)
