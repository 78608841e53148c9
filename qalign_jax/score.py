"""Scores outputs that exist, from any system, with both readers of an answer.

    python -m qalign_jax.score --benchmark=mgsm --predictions=outputs.jsonl

The file is JSON Lines of `output`, `answer` and `language` (evaluation/predictions.py).
"""

import sys
from typing import Any

from absl import flags

from qalign_jax import cli
from qalign_jax.evaluation import benchmarks
from qalign_jax.evaluation.predictions import score
from qalign_jax.reporting import tables


def define_flags() -> None:
    flags.DEFINE_string("benchmark", None, f"One of {', '.join(benchmarks.NAMES)}.", required=True)
    flags.DEFINE_string(
        "predictions",
        None,
        "JSON Lines file with output and answer, and language where there are several.",
        required=True,
    )
    flags.DEFINE_bool(
        "execute",
        False,
        "Runs the programs in the outputs (PAL, ToRA, OpenMathInstruct) in a sandbox and judges "
        "their results.",
    )


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    result = score(flags.FLAGS.benchmark, flags.FLAGS.predictions, flags.FLAGS.execute)
    shown = {
        "published reader": {result["benchmark"]: result["accuracy"]},
        "sound reader": {result["benchmark"]: result["sound"]},
    }
    print(tables.text(shown), file=sys.stderr)
    return result


if __name__ == "__main__":
    cli.main(_command, define_flags)
