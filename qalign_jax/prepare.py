"""Builds a recipe's data sets and packed tokens ahead of its run.

python -m qalign_jax.prepare --config=configs/math_cot.py:llama2_7b --workdir=gs://bucket/qalign7b
"""

import os
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from qalign_jax import cli


def prepare(
    config: ConfigDict, workdir: str | os.PathLike = "", stages: Sequence[str] = ()
) -> dict[str, Any]:
    """Reads and builds all data of a recipe's stages, without a device.

    A tokenizer that the recipe trains itself is trained: the packed tokens depend on it.

    Args:
      config, workdir, stages: as `run` will be given.

    Returns:
      {"workdir", "stages": {stage: statistics of its packed data}}.

    Raises:
      ValueError: a recipe that cannot run, or data that cannot be read.
      StorageFailed: there is no space for the data.
    """
    from qalign_jax.recipe.recipe import Recipe, folder_of

    workdir = folder_of(config, workdir)
    recipe = Recipe(config, workdir, stages, on_devices=False)
    first = [stage.name for stage in recipe.stages.values() if not stage.USES_DEVICES]
    if first:
        with recipe.workdir.held():
            Recipe(config, workdir, first, on_devices=False).run()
    return {"workdir": workdir, "stages": recipe.prepare()}


def define_flags() -> None:
    cli.define_recipe()
    flags.declare_key_flag("config")
    flags.DEFINE_string(
        "workdir", "", "The run's folder, as run will be given; runs/<recipe> by default."
    )
    flags.DEFINE_list("stages", [], "Prepare only these stages.")


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    values = flags.FLAGS
    return prepare(values.config, values.workdir, values.stages)


if __name__ == "__main__":
    cli.main(_command, define_flags)
