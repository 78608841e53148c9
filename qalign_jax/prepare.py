"""Builds a recipe's data sets and packed tokens ahead of its run."""

from absl import flags

from qalign_jax import cli


def define_flags() -> None:
    cli.define_recipe()
    flags.declare_key_flag("config")
    flags.DEFINE_string(
        "workdir",
        None,
        "The run's folder; runs/<recipe> by default. The same as run will be given.",
    )
    flags.DEFINE_list("stages", [], "Prepare only these stages.")


def prepare(argv: list[str]) -> dict:
    """Reads all input of the chosen stages, ahead of the run; returns what packing made of it."""
    from qalign_jax.recipe import Recipe

    config = flags.FLAGS.config
    workdir = flags.FLAGS.workdir or f"runs/{config.name}"
    # A tokenizer that the recipe trains itself comes first: the packed tokens are its own.
    trained = [name for name in config.stages if config[name].kind == "tokenizer"]
    if trained:
        Recipe(config, workdir, trained).run()
    return {"workdir": workdir, "stages": Recipe(config, workdir, flags.FLAGS.stages).prepare()}


if __name__ == "__main__":
    cli.main(prepare, define_flags)
