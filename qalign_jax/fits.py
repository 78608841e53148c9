"""Compiles a recipe for a TPU slice that is not there: whether it fits, and what it would cost.

    python -m qalign_jax.fits --config=configs/math_cot.py:llama2_70b,v5p-128 --topology=v5p-128

Every stage's programs are compiled as `run` compiles them, by the TPU's own compiler, on any Linux
machine with libtpu: memory and collectives are the compiler's. Step times and MFU are modelled (a
roofline, parallel/roofline.py), and called so.
"""

import dataclasses
import os
import sys

import jax
from absl import flags

from qalign_jax import cli
from qalign_jax.ahead import DecodingJob, Setting, TrainingJob
from qalign_jax.evaluation import benchmarks
from qalign_jax.models.llama import REMAT_POLICIES
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.parallel.topologies import CHIPS, GIB, Slice, parse_slice
from qalign_jax.stages import (
    check_rows,
    check_stage,
    mesh_spec,
    model_shape,
    optimizer_config,
    system_sources,
    training_config,
)


def define_flags() -> None:
    cli.define_recipe()
    flags.declare_key_flag("config")
    flags.DEFINE_string(
        "topology", None, "The slice: v5p:4x4x4, or by Google's name, v5p-128.", required=True
    )
    flags.DEFINE_integer("slices", 1, "How many of them, joined over DCN.", lower_bound=1)
    flags.DEFINE_list("stages", [], "Compile only these stages.")
    flags.DEFINE_float(
        "examples_per_row",
        2.4,
        "Examples in a packed row, for the rows of a batch. 2.4 is measured on question "
        "pairs and GSM8K at 512 tokens with LLaMA2's tokenizer; 1 is the most rows there can be.",
        lower_bound=1.0,
    )
    flags.DEFINE_integer("prompt_tokens", 512, "Length of a prompt in evaluation.", lower_bound=1)
    flags.DEFINE_boolean("suggest", True, "Where a stage does not fit, try what would.")
    flags.DEFINE_boolean("sweep", False, "Find the fastest modelled setting of training that fits.")


def fits(
    config, where: Slice, *, stages=(), examples_per_row=2.4, prompt_tokens=512, suggest=True,
    sweep=False,
) -> dict:  # fmt: skip
    """Compiles a recipe's stages for a slice; returns what the command prints as its last line.

    Rows a step are the recipe's, or as many as its batch of examples makes when it is packed.

    Raises:
      ValueError: a stage or a mesh that is not there, before anything is compiled.
    """
    jobs = {}  # stage -> program's name -> job; a stage's own mistakes are told here
    for name in _chosen(config, stages):
        check_stage(name, config[name])
        if config[name].kind == "train":
            jobs[name] = {"": _training_job(config, name, where, examples_per_row)}
        else:
            jobs[name] = _decoding_jobs(config, name, where, prompt_tokens)
        for job in jobs[name].values():
            try:
                job.check(where)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    results, done, suggestions = {}, {}, {}
    for name, programs in jobs.items():
        found = {}  # program -> (the job it belongs to, what it compiled to)
        for label, job in programs.items():
            if job not in done:
                _say(f"{name}: compiling {label or 'the training step'}")
                done[job] = job.compile(where)
            for part, compiled in done[job].items():
                found[f"{label} {part}".strip()] = job, compiled
        job, worst = min(found.values(), key=lambda pair: (pair[1].fits, pair[1].spare_bytes))
        results[name] = job.asked(where) | worst.to_json()
        if config[name].kind == "evaluate":
            results[name]["programs"] = {part: each.to_json() for part, (_, each) in found.items()}
        elif sweep:
            suggestions[name] = _sweep(job, where)
        if suggest and not worst.fits and name not in suggestions:
            suggestions[name] = _suggest(job, where)
    return {
        "topology": where.name,
        "slices": where.count,
        "devices": where.size,
        "hbm_gib": CHIPS[where.chip].hbm_gib,
        "fits": all(result["fits"] for result in results.values()),
        "stages": results,
        "suggestions": suggestions,
    }


def _chosen(config, stages) -> list[str]:
    for name in config.stages:
        if name not in config:
            raise ValueError(f"the recipe names a stage {name!r} and does not describe it")
    names = [name for name in config.stages if config[name].kind != "tokenizer"]
    if not names:
        raise ValueError("the recipe has no stage to compile, none that trains or evaluates")
    for name in stages:
        if name not in names:
            raise ValueError(f"no stage {name!r} to compile; there are {', '.join(names)}")
    return [name for name in names if not stages or name in stages]


def _training_job(config, name: str, where: Slice, examples_per_row: float) -> TrainingJob:
    stage, mesh = config[name], mesh_spec(config, name)
    check_rows(name, stage, make_mesh(mesh, where.devices()))
    model = training_config(name, model_shape(config, stage.init, stage.preset), stage)
    setting = Setting(mesh, model.remat, stage.micro_batches)
    expected = stage.batch_size / examples_per_row
    optimizer = optimizer_config(stage)
    return TrainingJob(model, optimizer, setting, stage.rows, expected, stage.length)


def _decoding_jobs(config, name: str, where: Slice, prompt: int) -> dict[str, DecodingJob]:
    stage, mesh = config[name], mesh_spec(config, name)
    make_mesh(mesh, where.devices())
    new = max(
        each.max_new_tokens or benchmarks.get(benchmark).max_new_tokens
        for benchmark, each in stage.benchmarks.items()
    )
    jobs = {}
    for name, system in stage.systems.items():
        models = [model_shape(config, source, size) for source, size in system_sources(system)]
        if stage.dtype:
            models = [dataclasses.replace(model, dtype=stage.dtype) for model in models]
        jobs[name] = DecodingJob(tuple(models), mesh, stage.slots, prompt, new)
    return jobs


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- what else would fit ---------------------------------------------------------------------------


def _attempt(job: TrainingJob | DecodingJob, where: Slice) -> dict | None:
    """What was asked for and what it compiles to, if it fits."""
    asked = job.asked(where)
    _say(f"trying {where.name} {_spelt(asked)}")
    try:
        found = job.compile(where)
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # the compiler has bugs of its own
        _say(str(error).splitlines()[0])
        return None
    largest = min(found.values(), key=lambda each: (each.fits, each.spare_bytes))
    if not largest.fits:
        _say(f"does not fit: {largest.peak_bytes / GIB:.2f} GiB needed")
        return None
    return {"topology": where.name} | asked | largest.to_json()


def _suggest(job: TrainingJob | DecodingJob, where: Slice) -> list[dict]:
    """Settings that fit, best first: on this slice with less in memory, else on a larger one."""
    for slice_ in (where, *where.larger()):
        if job.least_bytes / slice_.size > CHIPS[slice_.chip].hbm_gib * GIB:
            continue
        others = [other for other in job.alternatives(slice_) if (other, slice_) != (job, where)]
        found = [_attempt(other, slice_) for other in others]
        if any(found):
            return _fastest_first(found)
    return []


def _sweep(job: TrainingJob, where: Slice) -> list[dict]:
    """Every setting that fits on this slice, the fastest modelled one first."""
    remats = tuple(name for name in REMAT_POLICIES if name != "none")
    return _fastest_first([_attempt(other, where) for other in job.alternatives(where, remats)])


def _fastest_first(found: list[dict | None]) -> list[dict]:
    return sorted((one for one in found if one), key=lambda one: one["modelled_step_s"])


def table(result: dict) -> str:
    """The stages as a table for the terminal."""
    head = ("stage", "fits", "state", "temporary", "peak", "of", "step", "MFU", "compile")
    sizes = ("state_gib", "temporary_gib", "peak_gib")
    rows = [head]
    for name, stage in result["stages"].items():
        programs = stage.get("programs") or {"": stage}
        for program, found in programs.items():
            rows.append(
                (
                    f"{name} {program}".strip(), "yes" if found["fits"] else "NO",
                    *(f"{found[key]:.2f} GiB" for key in sizes),
                    f"{result['hbm_gib']} GiB",
                    _range(found["modelled_step_overlapped_s"], found["modelled_step_s"], " s"),
                    _range(found["modelled_mfu"], found["modelled_mfu_overlapped"]),
                    f"{found['compile_s']:.0f} s",
                )
            )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    for name, found in result["suggestions"].items():
        for one in found:
            lines.append(
                f"{name}: fits with --topology={one['topology']} {_spelt(one)}: "
                f"{one['peak_gib']:.2f} GiB, "
                f"{_range(one['modelled_step_overlapped_s'], one['modelled_step_s'], ' s')}"
            )
        if not found:
            lines.append(f"{name}: nothing that was tried fits; take a larger slice")
    return "\n".join([*lines, "Steps and MFU are modelled, from all overlapped to nothing."])


def _spelt(asked: dict) -> str:
    keys = ("mesh", "remat", "micro_batches", "rows", "slots")
    return " ".join(f"{key}={asked[key]}" for key in keys if key in asked)


def _range(low: float | None, high: float | None, unit: str = "") -> str:
    return "-" if low is None else f"{low:.3g} to {high:.3g}{unit}"


def _command(_) -> dict:
    # libtpu ends the process over flags of other backends; its own come by LIBTPU_INIT_ARGS
    os.environ.pop("XLA_FLAGS", None)
    jax.config.update("jax_platforms", "cpu")  # libtpu is here to compile, not to look for a TPU
    values = flags.FLAGS
    where = parse_slice(values.topology, values.slices)
    result = fits(
        values.config, where, stages=values.stages, prompt_tokens=values.prompt_tokens,
        examples_per_row=values.examples_per_row, suggest=values.suggest, sweep=values.sweep,
    )  # fmt: skip
    print(table(result), file=sys.stderr)
    return result


if __name__ == "__main__":
    cli.main(_command, define_flags)
