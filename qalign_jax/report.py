"""Writes a run's report page again, from the files that its stages left.

python -m qalign_jax.report --workdir=runs/demo
"""

from typing import Any

from absl import flags

from qalign_jax import cli
from qalign_jax.reporting import page

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run.", required=True)


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    return {"workdir": _WORKDIR.value, "report": str(page.write(_WORKDIR.value))}


if __name__ == "__main__":
    cli.main(_command)
