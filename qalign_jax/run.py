"""Runs a recipe's stages, in order, resuming what was stopped.

python -m qalign_jax.run --config=configs/math_cot.py:llama2_7b --workdir=gs://bucket/qalign7b
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from qalign_jax import cli
from qalign_jax.parallel import barrier


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
    flags.DEFINE_integer(
        "hang_timeout_s",
        barrier.HANG_TIMEOUT_S,
        "Seconds without a sign of life after which a process counts as hung, and ends all.",
        lower_bound=1,
    )


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    from qalign_jax.parallel import hosts
    from qalign_jax.recipe.recipe import run

    values = flags.FLAGS
    cluster = values.coordinator, values.processes, values.process
    hosts.initialize(*cluster, values.join_timeout_s, values.hang_timeout_s)
    outcome = run(values.config, values.workdir, values.stages, values.profile)
    if outcome["report"] and outcome["systems"]:
        from qalign_jax.reporting import tables

        print(tables.text(outcome["systems"]), end="\n\n")
    if outcome["report"]:
        print(_what_next(values.config.to_dict(), outcome), file=sys.stderr, flush=True)
    return outcome


def _what_next(recipe: Mapping[str, Any], outcome: Mapping[str, Any]) -> str:
    """Where the run's outputs are, and the commands that go on from them."""
    workdir, stages = outcome["workdir"], outcome["stages"]
    evaluations = [name for name in stages if recipe[name]["kind"] == "evaluate"]
    lines = [f"the page      {outcome['report']} (open it in a browser)"]
    if outcome["systems"] and evaluations:
        answers = f"{workdir}/{evaluations[0]}/<system>/<benchmark>/<language>.jsonl"
        lines.append(f"the answers   {answers}")
    if left := [name for name, state in stages.items() if state != "done"]:
        lines.append(f"still open    {', '.join(left)}: the same command, without --stages")
    elif tuned := _tuned_stage(recipe, evaluations):
        asked = f"--checkpoint={workdir}/{tuned} --prompts=FILE --output=FILE"
        lines.append(f"ask it        python -m qalign_jax.generate {asked}")
        asked = f"--source={workdir}/{tuned} --target=DIR"
        lines.append(f"to the Hub    python -m qalign_jax.convert {asked}")
    return "\n".join(lines)


def _tuned_stage(recipe: Mapping[str, Any], evaluations: Sequence[str]) -> str:
    """The last tuning stage of which a system that is no baseline was scored; "" without one."""
    scored = {
        system["model"]
        for name in evaluations
        for label, system in recipe[name]["systems"].items()
        if label != recipe[name]["baseline"] and not system["expert"]
    }
    tuned = [
        name
        for name in recipe["stages"]
        if name in scored and recipe[name].get("init", "random") != "random"
    ]
    return tuned[-1] if tuned else ""


if __name__ == "__main__":
    cli.main(_command, define_flags)
