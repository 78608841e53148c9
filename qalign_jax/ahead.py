"""Compiles training steps and decoding for slices that are not there, as `run` compiles them."""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qalign_jax.data.batches import nearest_rows
from qalign_jax.decoding.engine import make_plan, prefill_shape, with_room
from qalign_jax.decoding.proxy import FirstModel, ProxyTuning
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.slots import abstract_slots, advance, fill
from qalign_jax.models.llama import LlamaConfig, arithmetic_params
from qalign_jax.parallel.compiled import compile_and_print, read_program
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.parallel.roofline import link_seconds, model_time
from qalign_jax.parallel.topologies import CHIPS, GIB, Slice
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
        raise ValueError(
            f"{rows} rows are no multiple of {multiple}, the parts that {setting} makes of them"
        )
    config = dataclasses.replace(config, remat=setting.remat)
    state = abstract_state(config, optimizer, mesh)
    step = make_train_step(config, optimizer, mesh, setting.micro_batches)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    lower = functools.partial(step.lower, state, abstract_batch(mesh, rows, length), rate)
    tokens = rows * length / mesh.size
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
    combine = _combination(configs)
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
        flops = per_token * count / mesh.size
        return _compile(lower, state, where, mesh, flops, flops)

    return (
        compiled(fill, (tokens, row, row, row, row), prompt, width * prompt),
        compiled(advance, (number, number), plan.length, plan.slots),
    )


def _combination(models) -> FirstModel | ProxyTuning:
    return FirstModel() if len(models) == 1 else ProxyTuning()


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


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """A training stage as it is compiled; equal ones share a program."""

    model: LlamaConfig
    optimizer: OptimizerConfig
    setting: Setting
    rows: int  # 0: the nearest to `expected_rows` that the mesh divides
    expected_rows: float
    length: int

    @property
    def least_bytes(self) -> int:
        """Weights and moments, of all devices."""
        return self.model.num_parameters * 12

    def check(self, where: Slice) -> None:
        """Raises a ValueError where the mesh does not divide the slice or the model."""
        mesh = make_mesh(self.setting.mesh, where.devices())
        make_train_step(self.model, self.optimizer, mesh, self.setting.micro_batches)

    def asked(self, where: Slice) -> dict:
        """What is compiled, for the report."""
        mesh = make_mesh(self.setting.mesh, where.devices())
        multiple = rows_multiple(mesh, self.setting.micro_batches)
        rows = self.rows or nearest_rows(self.expected_rows, multiple)
        return dataclasses.asdict(self.setting) | {"rows": rows, "length": self.length}

    def compile(self, where: Slice) -> dict[str, Compiled]:
        """By the programs' names, which is empty here.

        Raises:
          ValueError: as `compile_training`.
        """
        rows = self.asked(where)["rows"]
        return {
            "": compile_training(self.model, where, self.setting, rows, self.length, self.optimizer)
        }

    def alternatives(self, where: Slice, remats=("full",)) -> Iterator["TrainingJob"]:
        """Other settings: whole batches first, then as many micro-batches as there are rows."""
        seen = set()
        for spec in (self.setting.mesh, *meshes(where, self.model)):
            try:
                mesh = make_mesh(spec, where.devices())
            except ValueError:
                continue
            shape, multiple = tuple(mesh.shape.items()), rows_multiple(mesh, 1)
            if shape in seen or self.rows % multiple:
                continue
            seen.add(shape)
            most = (self.rows or nearest_rows(self.expected_rows, multiple)) // multiple
            for micro_batches in dict.fromkeys((1, most)):
                for remat in remats:
                    setting = Setting(spec, remat, micro_batches)
                    yield dataclasses.replace(self, setting=setting)


@dataclasses.dataclass(frozen=True)
class DecodingJob:
    """A system of an evaluation as it is compiled."""

    models: tuple[LlamaConfig, ...]
    mesh: str
    slots: int
    prompt: int
    new: int

    @property
    def least_bytes(self) -> int:
        """The weights, of all devices."""
        return sum(model.num_parameters * 2 for model in self.models)

    def check(self, where: Slice) -> None:
        """Raises a ValueError where the mesh does not divide the slice or a model, or where prompts
        leave no room for answers.
        """
        mesh, combine = make_mesh(self.mesh, where.devices()), _combination(self.models)
        plan = with_room(
            make_plan(self.models, combine, Sampling(), mesh, self.slots), self.prompt + self.new
        )
        if self.prompt >= plan.length:
            raise ValueError(
                f"prompts of {self.prompt} tokens leave no room in the models' {plan.length}"
            )

    def asked(self, where: Slice) -> dict:
        """What is compiled, for the report."""
        return {"mesh": self.mesh, "slots": self.slots, "length": self.prompt + self.new}

    def compile(self, where: Slice) -> dict[str, Compiled]:
        """By the programs' names.

        Raises:
          ValueError: as `compile_decoding`.
        """
        sizes = (self.slots, self.prompt, self.new)
        prefill, decode = compile_decoding(self.models, where, self.mesh, *sizes)
        return {"prefill": prefill, "decode": decode}

    def alternatives(self, where: Slice) -> Iterator["DecodingJob"]:
        """Other meshes, those with the most tensor first."""
        for tensor in (8, 4, 2, 1):
            data, rest = divmod(where.size, tensor)
            if not rest and all(model.n_kv_heads % tensor == 0 for model in self.models):
                yield dataclasses.replace(self, mesh=f"data:{data},tensor:{tensor}")


def meshes(where: Slice, model: LlamaConfig) -> list[str]:
    """Meshes worth trying, pure fsdp first, as two axes (configs/slices.py says why)."""
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
