"""Runs a recipe's stages, in order, resuming what was stopped."""

from absl import flags

from qalign_jax import cli
from qalign_jax.parallel import meetings


def define_flags() -> None:
    cli.define_recipe()
    flags.declare_key_flag("config")
    flags.DEFINE_string(
        "workdir",
        None,
        "Where the run keeps everything, a folder or gs://bucket/path; the same command goes on "
        "where it was stopped. runs/<recipe> by default.",
    )
    flags.DEFINE_list("stages", [], "Run only these stages, for example --stages=evaluation.")
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, for several hosts that JAX does not find itself.",
    )
    flags.DEFINE_integer("processes", 1, "How many processes, with --coordinator.")
    flags.DEFINE_integer("process", 0, "The number of this one, with --coordinator.")
    flags.DEFINE_integer(
        "join_timeout_s",
        meetings.JOIN_TIMEOUT_S,
        "How many seconds to wait at the start until all processes of several hosts are there.",
        lower_bound=1,
    )


def run(argv: list[str]) -> dict:
    """Runs the recipe and writes its report; returns what the last line of stdout says."""
    from qalign_jax.parallel import hosts

    hosts.initialize(
        flags.FLAGS.coordinator,
        flags.FLAGS.processes,
        flags.FLAGS.process,
        flags.FLAGS.join_timeout_s,
    )

    import jax

    from qalign_jax.recipe import Recipe
    from qalign_jax.reporting import page, tables

    config = flags.FLAGS.config
    workdir = flags.FLAGS.workdir or f"runs/{config.name}"
    outcome = Recipe(config, workdir, flags.FLAGS.stages).run()
    report = None
    if jax.process_index() == 0:
        report = str(page.write(workdir))
        if outcome["systems"]:
            print(tables.text(outcome["systems"]), end="\n\n")
    return {"workdir": workdir, **outcome, "report": report}


if __name__ == "__main__":
    cli.main(run, define_flags)
