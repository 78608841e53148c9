"""Writes a run's report page again, or one page that compares several runs.

python -m qalign_jax.report --workdir=runs/demo
python -m qalign_jax.report --compare runs/seed0 runs/seed1 --output=seeds.html
"""

from typing import Any

from absl import flags

from qalign_jax import cli

OUTPUT = "comparison.html"


def define_flags() -> None:
    flags.DEFINE_string("workdir", "", "The folder of a run.")
    flags.DEFINE_list(
        "compare",
        [],
        "Runs on one page: --compare RUN1 RUN2 ... or --compare=RUN1,RUN2.",
    )
    flags.DEFINE_string(
        "output", "", f"Where the page of --compare goes. By default {OUTPUT}, in this folder."
    )


def _command(argv: list[str]) -> dict[str, Any]:
    values, more = flags.FLAGS, argv[1:]
    if values.compare and values.workdir:
        raise ValueError("--workdir and --compare: give one of them")
    if more and not values.compare:
        raise ValueError(f"unexpected argument {more[0]!r}; runs stand behind --compare")
    if values.output and not values.compare:
        raise ValueError("--output goes with --compare; a run's page is its report.html")
    if not (values.compare or values.workdir):
        raise ValueError("give --workdir=DIR, or --compare RUN1 RUN2 ...")
    from qalign_jax.reporting import compare, page  # imports matplotlib

    if values.compare:
        runs = [*values.compare, *more]
        return {"runs": runs, "report": str(compare.write(runs, values.output or OUTPUT))}
    return {"workdir": values.workdir, "report": str(page.write(values.workdir))}


if __name__ == "__main__":
    cli.main(_command, define_flags, positional=True)
