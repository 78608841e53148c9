"""Compiles a recipe for a TPU slice that is not there: whether it fits, and what it would cost.

    python -m qalign_jax.fits --config=configs/math_cot.py:llama2_70b,v5p-128 --topology=v5p-128

Every stage's programs are compiled as `run` compiles them, by the TPU's own compiler, on any Linux
machine with libtpu: memory and collectives are the compiler's. Step times and MFU are modelled (a
roofline, parallel/roofline.py), and called so.
"""

import dataclasses
import functools
import math
import re
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

from qalign_jax import cli
from qalign_jax.data.batches import nearest_rows
from qalign_jax.decoding.engine import make_plan, prefill_shape, with_room
from qalign_jax.decoding.proxy import FirstModel, ProxyTuning
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.slots import abstract_slots, advance, fill
from qalign_jax.evaluation import benchmarks
from qalign_jax.models.llama import REMAT_POLICIES, LlamaConfig, arithmetic_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.compiled import compile_and_print, read_program
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.parallel.roofline import link_seconds, model_time
from qalign_jax.parallel.topologies import CHIPS, GIB, Slice, parse_slice
from qalign_jax.stages import (
    RANDOM,
    check_rows,
    mesh_spec,
    optimizer_config,
    system_sources,
    training_config,
)
from qalign_jax.training.checkpoints import read_shape
from qalign_jax.training.optimizer import OptimizerConfig
from qalign_jax.training.step import (
    abstract_batch,
    abstract_params_on,
    abstract_state,
    make_train_step,
    rows_multiple,
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What may be chosen without changing what is computed."""

    mesh: str
    remat: str
    micro_batches: int

    def __str__(self):
        return f"mesh={self.mesh} remat={self.remat} micro_batches={self.micro_batches}"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program on one slice: bytes of a device, and seconds that are modelled."""

    fits: bool
    allowed_bytes: int  # of HBM, by the compiler
    peak_bytes: int  # 0 where the compiler gave up and did not say
    state_bytes: int = 0  # of the arguments that the program gives back changed
    aliased_bytes: int = 0
    temporary_bytes: int = 0
    flops: float = 0.0  # of the model, a device and call, recomputation left out
    compile_s: float = 0.0
    # None where it does not fit: there is no program then
    collectives: dict[str, dict[str, int]] | None = None  # kind -> dtype -> bytes
    hbm_bytes: int | None = None
    seconds: tuple[float, float] | None = None  # modelled: all overlapped, nothing overlapped
    mfu: tuple[float, float] | None = None  # modelled, of the same two

    @property
    def spare_bytes(self) -> int:
        return self.allowed_bytes - self.peak_bytes

    def to_json(self) -> dict:
        return {
            "fits": self.fits,
            "state_gib": round(self.state_bytes / GIB, 3),
            "temporary_gib": round(self.temporary_bytes / GIB, 3),
            "peak_gib": round(self.peak_bytes / GIB, 3),
            # below zero: what is missing; None where the compiler did not say
            "spare_gib": round(self.spare_bytes / GIB, 3) if self.peak_bytes else None,
            "state_bytes": self.state_bytes,
            "aliased_bytes": self.aliased_bytes,
            "collectives": self.collectives,
            "hbm_bytes": self.hbm_bytes,
            "flops": self.flops,
            "modelled_step_s": self.seconds and round(self.seconds[1], 6),
            "modelled_step_overlapped_s": self.seconds and round(self.seconds[0], 6),
            "modelled_mfu": self.mfu and round(self.mfu[1], 3),
            "modelled_mfu_overlapped": self.mfu and round(self.mfu[0], 3),
            "compile_s": round(self.compile_s, 1),
        }


def compile_training(
    config: LlamaConfig, where: Slice, setting: Setting, rows: int, length: int,
    optimizer: OptimizerConfig = OptimizerConfig(),
) -> Compiled:  # fmt: skip
    """Compiles one training step of `rows` rows as the training stage would.

    Raises:
      ValueError: a mesh that does not divide the slice, the model or the rows.
    """
    mesh = make_mesh(setting.mesh, where.devices())
    multiple = rows_multiple(mesh, setting.micro_batches)
    if rows % multiple:
        raise ValueError(f"{setting}: {rows} rows are no multiple of {multiple}")
    config = dataclasses.replace(config, remat=setting.remat)
    state = abstract_state(config, optimizer, mesh)
    step = make_train_step(config, optimizer, mesh, setting.micro_batches)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    lower = functools.partial(step.lower, state, abstract_batch(mesh, rows, length), rate)
    tokens = rows * length / where.size
    useful = tokens * config.flops_per_token(length)
    again = tokens * config.recomputed_flops_per_token(length)
    return _compile(lower, state, where, mesh, useful, useful + again)


def compile_decoding(
    configs: tuple[LlamaConfig, ...], where: Slice, mesh: str, slots: int, prompt: int, new: int
) -> tuple[Compiled, Compiled]:
    """Compiles a prefill and a decode step of one model, or of three that are proxy-tuned.

    The decode loop's body is one token of every slot; its times are a token's.

    Raises:
      ValueError: a mesh that does not divide the slice or the models.
    """
    mesh = make_mesh(mesh, where.devices())
    combine = FirstModel() if len(configs) == 1 else ProxyTuning()
    plan = with_room(make_plan(configs, combine, Sampling(), mesh, slots), prompt + new)
    params = tuple(_held_params(config, mesh) for config in configs)
    state = abstract_slots(plan)
    key = jax.eval_shape(lambda: jax.random.key(0))
    eos = jax.ShapeDtypeStruct((1,), jnp.int32)
    width, prompt = prefill_shape(plan, prompt)
    row = jax.ShapeDtypeStruct((width,), jnp.int32)
    tokens = jax.ShapeDtypeStruct((width, prompt), jnp.int32)
    number = jax.ShapeDtypeStruct((), jnp.int32)

    def compiled(function, arguments, length, count):
        lower = functools.partial(function.lower, plan, params, key, eos, state, *arguments)
        per_token = sum(config.flops_per_token(length, training=False) for config in configs)
        flops = per_token * count / where.size
        return _compile(lower, state, where, mesh, flops, flops)

    return (
        compiled(fill, (tokens, row, row, row, row), prompt, width * prompt),
        compiled(advance, (number, number), plan.length, plan.slots),
    )


def _held_params(config: LlamaConfig, mesh: Mesh):
    """Abstract parameters in the dtypes that an engine holds them in."""
    wide = abstract_params_on(config, mesh)
    dtypes = jax.eval_shape(functools.partial(arithmetic_params, config), wide)
    return jax.tree.map(
        lambda leaf, held: jax.ShapeDtypeStruct(leaf.shape, held.dtype, sharding=leaf.sharding),
        wide,
        dtypes,
    )


def _compile(
    lower: Callable, state, where: Slice, mesh: Mesh, useful: float, executed: float
) -> Compiled:
    chip = CHIPS[where.chip]
    allowed = int(chip.hbm_gib * GIB)
    began = time.monotonic()
    try:
        compiled, text = compile_and_print(lower())
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"(?:Used |\()([\d.]+)([MGT])", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        units = {"M": 2**20, "G": 2**30, "T": 2**40}
        peak = int(float(needed[1]) * units[needed[2]]) if needed else 0
        return Compiled(False, allowed, peak, compile_s=time.monotonic() - began)
    seconds = time.monotonic() - began
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
    program = read_program(text)
    times = model_time(chip, executed, program.hbm_bytes, link_seconds(program, chip, mesh))
    return Compiled(
        fits=peak <= allowed,
        allowed_bytes=allowed,
        peak_bytes=peak,
        state_bytes=local_bytes(state),
        aliased_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=useful,
        compile_s=seconds,
        collectives=program.bytes_by_kind(),
        hbm_bytes=program.hbm_bytes,
        seconds=times,
        mfu=tuple(useful / (chip.tflops * 1e12) / t for t in times),
    )


def local_bytes(tree) -> int:
    """Bytes of one device's part of abstract arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


# -- a recipe's programs ---------------------------------------------------------------------------


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
        if config[name].kind == "train":
            jobs[name] = {"": _training_job(config, name, where, examples_per_row)}
        else:
            jobs[name] = _decoding_jobs(config, name, where, prompt_tokens)
    results, done, suggestions = {}, {}, {}
    for name, programs in jobs.items():
        found = {}
        for label, job in programs.items():
            if job not in done:
                _say(f"{name}: compiling {label or 'the training step'}")
                done[job] = job.compile(where)
            found |= {f"{label} {part}".strip(): each for part, each in done[job].items()}
        worst = min(found.values(), key=lambda each: (each.fits, each.spare_bytes))
        results[name] = worst.to_json()
        if "" in programs:
            if sweep:
                suggestions[name] = _sweep(programs[""], where)
            elif suggest and not worst.fits:
                suggestions[name] = _suggest(programs[""], where)
        else:
            results[name]["programs"] = {part: each.to_json() for part, each in found.items()}
    return {
        "topology": where.name,
        "slices": where.count,
        "devices": where.size,
        "hbm_gib": CHIPS[where.chip].hbm_gib,
        "fits": all(result["fits"] for result in results.values()),
        "stages": results,
        "suggestions": suggestions,
    }


@dataclasses.dataclass(frozen=True)
class _TrainingJob:
    """A training stage as it is compiled; equal ones share a program."""

    model: LlamaConfig
    optimizer: OptimizerConfig
    setting: Setting
    rows: int  # 0: the nearest to `expected_rows` that the mesh divides
    expected_rows: float
    length: int

    def rows_on(self, where: Slice, setting: Setting) -> int:
        multiple = rows_multiple(make_mesh(setting.mesh, where.devices()), setting.micro_batches)
        return self.rows or nearest_rows(self.expected_rows, multiple)

    def compile(self, where: Slice, setting: Setting | None = None) -> dict[str, Compiled]:
        setting = setting or self.setting
        rows = self.rows_on(where, setting)
        return {"": compile_training(self.model, where, setting, rows, self.length, self.optimizer)}


@dataclasses.dataclass(frozen=True)
class _DecodingJob:
    """A system of an evaluation as it is compiled."""

    models: tuple[LlamaConfig, ...]
    mesh: str
    slots: int
    prompt: int
    new: int

    def compile(self, where: Slice) -> dict[str, Compiled]:
        sizes = (self.slots, self.prompt, self.new)
        prefill, decode = compile_decoding(self.models, where, self.mesh, *sizes)
        return {"prefill": prefill, "decode": decode}


def _chosen(config, stages) -> list[str]:
    names = [name for name in config.stages if config[name].kind != "tokenizer"]
    for name in stages:
        if name not in names:
            raise ValueError(f"no stage {name!r} to compile; there are {', '.join(names)}")
    return [name for name in names if not stages or name in stages]


def _training_job(config, name: str, where: Slice, examples_per_row: float) -> _TrainingJob:
    stage, mesh = config[name], mesh_spec(config, name)
    check_rows(name, stage, make_mesh(mesh, where.devices()))
    model = training_config(_shape(config, stage.init, stage.preset), stage)
    setting = Setting(mesh, model.remat, stage.micro_batches)
    expected = stage.batch_size / examples_per_row
    optimizer = optimizer_config(stage)
    return _TrainingJob(model, optimizer, setting, stage.rows, expected, stage.length)


def _decoding_jobs(config, name: str, where: Slice, prompt: int) -> dict[str, _DecodingJob]:
    stage, mesh = config[name], mesh_spec(config, name)
    make_mesh(mesh, where.devices())
    new = max(
        each.max_new_tokens or benchmarks.get(benchmark).max_new_tokens
        for benchmark, each in stage.benchmarks.items()
    )
    jobs = {}
    for name, system in stage.systems.items():
        models = [_shape(config, source, size) for source, size in system_sources(system)]
        if stage.dtype:
            models = [dataclasses.replace(model, dtype=stage.dtype) for model in models]
        jobs[name] = _DecodingJob(tuple(models), mesh, stage.slots, prompt, new)
    return jobs


def _shape(config, source: str, preset_name: str) -> LlamaConfig:
    """The shape of a stage's or a directory's model, or of the preset where it is random."""
    if source in config.stages:
        return _shape(config, config[source].init, config[source].preset)
    if source == RANDOM:
        return preset(preset_name)
    return read_shape(source)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- what else would fit ---------------------------------------------------------------------------


def meshes(where: Slice, model: LlamaConfig) -> list[str]:
    """Meshes worth trying, pure fsdp first; over a whole slice it is two axes (TPU.md's trap)."""
    chips = math.prod(where.shape)
    data = f"data:{where.count}," if where.count > 1 else ""
    found = []
    for tensor in (1, 4, 8, 16):
        fsdp = chips // tensor
        if chips % tensor or fsdp < 1 or model.n_kv_heads % tensor:
            continue
        if tensor == 1:
            outer, inner = _two(where.shape)
            if model.d_model % chips == 0:
                found.append(f"{data}fsdp:{outer}x{inner},tensor:1")
        elif model.d_model % fsdp == 0:
            found.append(f"{data}fsdp:{fsdp},tensor:{tensor}")
    return found


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    """A torus' axes as two."""
    shape = tuple(size for size in shape if size > 1) or (1,)
    return math.prod(shape[:-1]), shape[-1]


def _settings(job: _TrainingJob, where: Slice, remats) -> Iterator[Setting]:
    """Whole batches first, then as many micro-batches as there are rows."""
    seen = set()
    for spec in (job.setting.mesh, *meshes(where, job.model)):
        try:
            mesh = make_mesh(spec, where.devices())
        except ValueError:
            continue
        if tuple(mesh.shape.items()) in seen:
            continue
        seen.add(tuple(mesh.shape.items()))
        multiple = rows_multiple(mesh, 1)
        if job.rows % multiple:
            continue
        most = (job.rows or nearest_rows(job.expected_rows, multiple)) // multiple
        for micro_batches in dict.fromkeys((1, most)):
            for remat in remats:
                yield Setting(spec, remat, micro_batches)


def _attempt(job: _TrainingJob, where: Slice, setting: Setting) -> dict | None:
    """The setting and what it compiles to, if it fits."""
    _say(f"trying {where.name} {setting}")
    try:
        compiled = job.compile(where, setting)[""]
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # the compiler has bugs of its own
        _say(str(error).splitlines()[0])
        return None
    if not compiled.fits:
        return None
    return {"topology": where.name} | dataclasses.asdict(setting) | compiled.to_json()


def _suggest(job: _TrainingJob, where: Slice) -> list[dict]:
    """Settings that fit, best first: on this slice with less in memory, else on a larger one."""
    own = make_mesh(job.setting.mesh, where.devices()).shape
    for slice_ in (where, *where.larger()):
        if job.model.num_parameters * 12 / slice_.size > CHIPS[slice_.chip].hbm_gib * GIB:
            continue  # weights and moments alone are too large
        found = []
        for setting in _settings(job, slice_, ("full",)):
            same = slice_ == where and make_mesh(setting.mesh, slice_.devices()).shape == own
            if same and (setting.remat, setting.micro_batches) == (
                job.setting.remat, job.setting.micro_batches,
            ):  # fmt: skip
                continue
            found.append(_attempt(job, slice_, setting))
        if any(found):
            return _fastest_first([one for one in found if one])
    return []


def _sweep(job: _TrainingJob, where: Slice) -> list[dict]:
    """Every setting that fits on this slice, the fastest modelled one first."""
    remats = tuple(name for name in REMAT_POLICIES if name != "none")
    found = [_attempt(job, where, setting) for setting in _settings(job, where, remats)]
    return _fastest_first([one for one in found if one])


def _fastest_first(found: list[dict]) -> list[dict]:
    return sorted(found, key=lambda one: one["modelled_step_s"])


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
                f"{name}: fits with --topology={one['topology']} mesh={one['mesh']} "
                f"remat={one['remat']} micro_batches={one['micro_batches']}: {one['peak_gib']:.2f} "
                f"GiB, {_range(one['modelled_step_overlapped_s'], one['modelled_step_s'], ' s')}"
            )
        if not found:
            lines.append(f"{name}: nothing that was tried fits; take a larger slice")
    return "\n".join([*lines, "Steps and MFU are modelled, from all overlapped to nothing."])


def _range(low: float | None, high: float | None, unit: str = "") -> str:
    return "-" if low is None else f"{low:.3g} to {high:.3g}{unit}"


def _command(_) -> dict:
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
