"""Compiles a recipe ahead of time for a TPU slice: whether it fits, and what it would cost.

    python -m qalign_jax.fits --config=configs/math_cot.py:llama2_70b --topology=v5p-128

The meshes are the recipe's for that slice where it has some (configs/slices.py) and neither its
argument names a slice nor --config.mesh a mesh.

Every stage's programs are compiled as `run` compiles them, by the TPU's own compiler, on any Linux
machine with libtpu: memory and collectives are the compiler's. Step times and MFU are modelled by a
roofline (ahead/roofline.py).
"""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from qalign_jax import cli
from qalign_jax.ahead.jobs import Job, TrainingJob, Workload, check_jobs
from qalign_jax.ahead.suggest import say, spelt, suggest, sweep
from qalign_jax.models.presets import PRESETS
from qalign_jax.parallel.chips import CHIPS, Slice, parse_slice
from qalign_jax.recipe.stages.base import make_run, read_stages


def define_flags() -> None:
    cli.define_recipe()
    flags.declare_key_flag("config")
    flags.DEFINE_string(
        "topology",
        None,
        "The slice, v5p:4x4x4 or by Google's name v5p-128, of v4, v5e, v5p or v6e.",
        required=True,
    )
    flags.DEFINE_integer("slices", 1, "How many of them, joined over DCN.", lower_bound=1)
    flags.DEFINE_list("stages", [], "Compile only these stages.")
    flags.DEFINE_float(
        "examples_per_row",
        Workload.examples_per_row,
        "Examples in a packed row, for the rows of a batch; measured on question pairs and GSM8K "
        "at 512 tokens. 1 makes the most rows.",
        lower_bound=1.0,
    )
    flags.DEFINE_integer(
        "prompt_tokens", Workload.prompt_tokens, "Length of a prompt in evaluation.", lower_bound=1
    )
    flags.DEFINE_float(
        "acceptance", Workload.acceptance,
        "Where tokens are drafted, the share of compared drafts that is kept, for the tokens of a "
        "round; the demo keeps 0.93 and more.", lower_bound=0.0, upper_bound=1.0,
    )  # fmt: skip
    flags.DEFINE_boolean("suggest", True, "Where a stage does not fit, try what would.")
    flags.DEFINE_boolean("sweep", False, "Find the fastest modelled setting of training that fits.")


def fits(
    config: ConfigDict,
    where: Slice,
    *,
    stages: Sequence[str] = (),
    workload: Workload = Workload(),
    suggest_others: bool = True,
    sweep_settings: bool = False,
) -> dict[str, Any]:
    """Compiles a recipe's stages for a slice; returns what the command prints as its last line.

    Rows a step are the recipe's, or as many as its batch of examples makes when it is packed.

    Args:
      stages: only these; all that compute on devices by default.
      workload: assumptions about the data.
      suggest_others: where a stage does not fit, try what would.
      sweep_settings: find the fastest modelled setting of training that fits.

    Raises:
      ValueError: a stage or a mesh that does not exist, before anything is compiled.
    """
    jobs = _jobs(config, stages, workload)
    for name, programs in jobs.items():
        check_jobs(name, programs, where.devices())
    results, done, suggestions = {}, {}, {}
    for name, programs in jobs.items():
        found = {}  # program -> (the job it belongs to, what it compiled to)
        for label, job in programs.items():
            if job not in done:
                say(f"{name}: compiling {label or 'the training step'}")
                done[job] = job.compile(where)
            for part, compiled in done[job].items():
                found[f"{label} {part}".strip()] = job, compiled
        job, worst = min(found.values(), key=lambda pair: (pair[1].fits, pair[1].spare_bytes))
        results[name] = job.asked(where) | worst.to_json()
        if len(found) > 1:
            results[name]["programs"] = {part: each.to_json() for part, (_, each) in found.items()}
        if sweep_settings and isinstance(job, TrainingJob):
            suggestions[name] = sweep(job, where)
        elif suggest_others and not worst.fits:
            suggestions[name] = suggest(job, where)
    return {
        "topology": where.name,
        "slices": where.count,
        "devices": where.size,
        "hbm_gib": CHIPS[where.chip].hbm_gib,
        "fits": all(result["fits"] for result in results.values()),
        "stages": results,
        "suggestions": suggestions,
    }


def _jobs(
    config: ConfigDict, chosen: Sequence[str], workload: Workload
) -> dict[str, dict[str, Job]]:
    """Stage -> program's name -> job."""
    stages = read_stages(config)
    run = make_run(config, stages, "")
    jobs = {name: stage.jobs(run, workload) for name, stage in stages.items()}
    jobs = {name: programs for name, programs in jobs.items() if programs}
    if not jobs:
        raise ValueError("the recipe has no stage to compile, none that trains or evaluates")
    for name in chosen:
        if name not in jobs:
            raise ValueError(f"no stage {name!r} to compile; there are {', '.join(jobs)}")
    return {name: programs for name, programs in jobs.items() if not chosen or name in chosen}


def table(result: dict) -> str:
    """The stages as a table for the terminal."""
    head = ("stage", "fits", "state", "temporary", "peak", "of", "step", "MFU", "compile")
    sizes = ("state_gib", "temporary_gib", "peak_gib")
    rows: list[tuple[str, ...]] = [head]
    for name, stage in result["stages"].items():
        programs = stage.get("programs") or {"": stage}
        for program, found in programs.items():
            rows.append(
                (
                    f"{name} {program}".strip() + _held(stage), "yes" if found["fits"] else "NO",
                    *(f"{found[key]:.2f} GiB" for key in sizes),
                    f"{result['hbm_gib']} GiB",
                    _range(found["modelled_step_overlapped_s"], found["modelled_step_s"], " s"),
                    _range(found["modelled_mfu"], found["modelled_mfu_overlapped"]),
                    f"{found['compile_s']:.0f} s",
                )
            )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    for name, stage in result["stages"].items():
        for program, found in (stage.get("programs") or {}).items():
            if found.get("draft_tokens") and found["modelled_token_s"]:
                lines.append(
                    f"{name} {program}: of {found['draft_tokens']} drafts a round, "
                    f"{found['tokens_per_round']:.2f} tokens where of those compared "
                    f"{found['acceptance']:.2f} are kept; {found['modelled_token_s']:.3g} s a token"
                )
    for name, found in result["suggestions"].items():
        for one in found:
            lines.append(
                f"{name}: fits with --topology={one['topology']} {spelt(one)}: "
                f"{one['peak_gib']:.2f} GiB, "
                f"{_range(one['modelled_step_overlapped_s'], one['modelled_step_s'], ' s')}"
            )
        if not found:
            lines.append(f"{name}: nothing that was tried fits; take a larger slice")
        if "remat" in result["stages"][name] and "trains" not in result["stages"][name]:
            lines.append(
                f"{name}: an adapter needs less: --config.{name}.adapter.rank=64 "
                f"--config.{name}.lr=2e-4, and --config.{name}.weights_dtype=int8"
            )
    return "\n".join([*lines, "Steps and MFU are modelled, from all overlapped to nothing."])


def _held(stage: dict) -> str:
    """What is trained, where that is not all, and what is int8, as the end of a name."""
    parts = (("weights_dtype", "weights"), ("cache_dtype", "cache"))
    held = [part for key, part in parts if stage.get(key)]
    trains = f", {stage['trains']}" if "trains" in stage else ""
    return trains + (f", int8 {' and '.join(held)}" if held else "")


def _range(low: float | None, high: float | None, unit: str = "") -> str:
    return "-" if low is None else f"{low:.3g} to {high:.3g}{unit}"


def on_slice(
    config: ConfigDict, path: str, overrides: Mapping[str, Any], where: Slice
) -> tuple[ConfigDict, str]:
    """A recipe with its own meshes for a slice, and its argument that names the slice.

    The recipe as it is, and "", where its argument is no preset or names a slice already, where a
    mesh is given, or where it has no meshes for the slice.

    Args:
      path: the recipe's file and argument, as of --config.
      overrides: values of its keys that the command line gave.
    """
    file, _, arg = path.partition(":")
    preset, *others = arg.split(",")
    names_slice = not all(word.isalpha() for word in others)
    if preset not in PRESETS or names_slice or "mesh" in overrides or where.count > 1:
        return config, ""
    arg = ",".join((preset, where.name, *others))
    try:
        config = runpy.run_path(file)["get_config"](arg)
    except ValueError:
        return config, ""
    config.update_from_flattened_dict(overrides)
    return config, arg


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    # libtpu ends the process over flags of other backends; its own come by LIBTPU_INIT_ARGS
    os.environ.pop("XLA_FLAGS", None)
    jax.config.update("jax_platforms", "cpu")  # libtpu only compiles: JAX must not look for a TPU
    values = flags.FLAGS
    where = parse_slice(values.topology, values.slices)
    flag = values["config"]
    path, overrides = config_flags.get_config_filename(flag), config_flags.get_override_values(flag)
    config, argument = on_slice(values.config, path, overrides, where)
    if argument:
        say(f"with the recipe's meshes for the slice, as of {argument}")
    result = fits(
        config,
        where,
        stages=values.stages,
        workload=Workload(values.examples_per_row, values.prompt_tokens, values.acceptance),
        suggest_others=values.suggest,
        sweep_settings=values.sweep,
    )
    print(table(result), file=sys.stderr)
    return result | {"argument": argument}


if __name__ == "__main__":
    cli.main(_command, define_flags)
