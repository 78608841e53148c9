"""Writes a run's report page again, from the files that its stages left.

python -m qalign_jax.report --workdir=runs/demo
"""

from typing import Any

from absl import flags

from qalign_jax import cli
from qalign_jax.reporting import page


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of a run.", required=True)


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    return {"workdir": flags.FLAGS.workdir, "report": str(page.write(flags.FLAGS.workdir))}


if __name__ == "__main__":
    cli.main(_command, define_flags)
