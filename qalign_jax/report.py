"""Writes a run's report page again, from the files that its stages left.

python -m qalign_jax.report --workdir=runs/demo
"""

import os
from typing import Any

from absl import flags

from qalign_jax import cli


def report(workdir: str | os.PathLike) -> dict[str, Any]:
    """Writes the page; returns {"workdir", "report": path}.

    Raises:
      ValueError: the folder is none of a run, or one of its files is damaged.
    """
    from qalign_jax.reporting import page

    return {"workdir": os.fspath(workdir), "report": str(page.write(workdir))}


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of a run.", required=True)


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    return report(flags.FLAGS.workdir)


if __name__ == "__main__":
    cli.main(_command, define_flags)
