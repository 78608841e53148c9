"""Compiles training steps and decoding ahead of time for a TPU slice, as `run` compiles them."""

import dataclasses
import functools
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qalign_jax.ahead.cost import read_program
from qalign_jax.ahead.roofline import link_seconds, model_time
from qalign_jax.decoding.combine import combination
from qalign_jax.decoding.draft_length import expected_tokens, passes_of
from qalign_jax.decoding.engine import STEPS_PER_CALL
from qalign_jax.decoding.plan import Plan, abstract_params, prefill_shape, weights_of
from qalign_jax.decoding.slots import abstract_slots, advance, fill
from qalign_jax.models.flops import flops_per_token, recomputed_flops_per_token
from qalign_jax.models.llama import Llama
from qalign_jax.models.trainable import WHOLE, Trainable
from qalign_jax.parallel.chips import CHIPS, GIB, Slice
from qalign_jax.parallel.mesh import local_bytes, make_mesh
from qalign_jax.training.optimizer import OptimizerConfig
from qalign_jax.training.step import (
    abstract_batch,
    abstract_state,
    make_train_step,
    rows_multiple,
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program on one slice: bytes of a device, and modelled seconds."""

    fits: bool
    allowed_bytes: int  # of HBM, by the compiler
    peak_bytes: int  # 0 where the compiler gives no number
    state_bytes: int = 0  # of the donated state
    aliased_bytes: int = 0
    temporary_bytes: int = 0
    flops: float = 0.0  # of one device and call; recomputation left out
    compile_s: float = 0.0
    # None where it does not fit, and so is not compiled
    collectives: dict[str, dict[str, int]] | None = None  # kind -> dtype -> bytes
    hbm_bytes: int | None = None
    floor_bytes: int = 0  # of decoding: what must be read, in each pass weights and caches once
    # of a round of decoding: its drafts, the share of them that is kept, a row's expected tokens
    drafts: int = 0
    acceptance: float = 1.0
    tokens: float = 0.0
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
            # negative: what is missing; None where the compiler gives no number
            "spare_gib": round(self.spare_bytes / GIB, 3) if self.peak_bytes else None,
            "state_bytes": self.state_bytes,
            "aliased_bytes": self.aliased_bytes,
            "collectives": self.collectives,
            "hbm_bytes": self.hbm_bytes,
            "floor_bytes": self.floor_bytes,
            "flops": self.flops,
            "modelled_step_s": self.seconds and round(self.seconds[1], 6),
            "modelled_step_overlapped_s": self.seconds and round(self.seconds[0], 6),
            "modelled_mfu": self.mfu and round(self.mfu[1], 3),
            "modelled_mfu_overlapped": self.mfu and round(self.mfu[0], 3),
            "compile_s": round(self.compile_s, 1),
            **self._tokens_to_json(),
        }

    def _tokens_to_json(self) -> dict:
        if not self.tokens:
            return {}
        drafts = {"draft_tokens": self.drafts, "acceptance": self.acceptance} if self.drafts else {}
        seconds = self.seconds and round(self.seconds[1] / self.tokens, 8)
        return drafts | {"tokens_per_round": round(self.tokens, 3), "modelled_token_s": seconds}


def compile_training(
    model: Llama, where: Slice, mesh: str, rows: int, length: int, micro_batches: int = 1,
    optimizer: OptimizerConfig = OptimizerConfig(), trainable: Trainable = WHOLE,
) -> Compiled:  # fmt: skip
    """Compiles one training step of `rows` rows as the training stage would.

    Raises:
      ValueError: a mesh that does not divide the slice, the model or the rows.
    """
    on_slice = make_mesh(mesh, where.devices())
    multiple = rows_multiple(on_slice, micro_batches)
    if rows % multiple:
        raise ValueError(
            f"{rows} rows are no multiple of {multiple}, the parts that mesh {mesh!r} and "
            f"{micro_batches} micro-batches split them in"
        )
    state = abstract_state(model.config, optimizer, on_slice, trainable)
    step = make_train_step(model, optimizer, on_slice, micro_batches, trainable=trainable)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    lower = functools.partial(step.lower, state, abstract_batch(on_slice, rows, length), rate)
    tokens = rows * length / on_slice.size
    remat = model.execution.remat
    useful = tokens * flops_per_token(model.config, length, trainable=trainable)
    again = tokens * recomputed_flops_per_token(model.config, remat, length, trainable)
    return _compile(lower, state, where, on_slice, useful, useful + again)


def compile_prefill(plan: Plan, where: Slice, prompt: int) -> Compiled:
    """Compiles the prefill of prompts of this length; `plan` is on a mesh of the slice."""
    width, prompt = prefill_shape(plan, prompt)
    row = jax.ShapeDtypeStruct((width,), jnp.int32)
    tokens = jax.ShapeDtypeStruct((width, prompt), jnp.int32)
    arguments, counts = (tokens, row, row, row, row, row), [width * prompt] * len(plan.models)
    return _compile_decoding(plan, where, fill, (0,), arguments, counts, prompt)


def compile_round(
    plan: Plan, where: Slice, room: int, drafts: int = 0, acceptance: float = 1.0
) -> Compiled:
    """Compiles the decode loop, whose rounds draft so many tokens; its figures are of one round.

    Args:
      room: how many of the caches' positions are read.
      acceptance: the share of compared drafts that is kept, for the tokens of a round.
    """
    number = jax.ShapeDtypeStruct((), jnp.int32)
    passes = passes_of(plan, drafts)
    counts = [plan.slots * times * tokens for times, tokens in passes]
    params, floor = abstract_params(plan), 0
    for place, (first, cache) in enumerate(
        zip(plan.firsts, abstract_slots(plan).caches, strict=True)
    ):
        weights, (times, _) = weights_of(plan, params, place), passes[first]
        # of an embedding that is not the head as well a step reads a few rows
        table = local_bytes(weights["embed"]) if "head" in weights else 0
        read = local_bytes(cache) * room // plan.length
        floor += times * (local_bytes(weights) - table + read)
    rounds = max(1, STEPS_PER_CALL // (drafts + 1))  # of a call, as the engine asks for them
    compiled = _compile_decoding(
        plan, where, advance, (room, drafts), (number, number), counts, room, rounds, floor
    )
    tokens = expected_tokens(drafts, acceptance)
    return dataclasses.replace(compiled, drafts=drafts, acceptance=acceptance, tokens=tokens)


def _compile_decoding(
    plan: Plan, where: Slice, function, sizes, arguments, counts: Sequence[int], length: int,
    rounds: int = 1, floor: int = 0,
) -> Compiled:  # fmt: skip
    """Compiles `function`, in which each model reads so many tokens that see up to `length`."""
    assert plan.mesh, "programs are compiled ahead of time for a mesh"
    state = abstract_slots(plan)
    key = jax.eval_shape(lambda: jax.random.key(0))
    eos = jax.ShapeDtypeStruct((1,), jnp.int32)
    constant = (abstract_params(plan), combination(len(plan.targets)), key, eos)
    lower = functools.partial(function.lower, plan, *sizes, *constant, state, *arguments)
    each = (
        count
        * flops_per_token(
            model.config, length, training=False, trainable=Trainable(adapter=model.adapter)
        )
        for model, count in zip(plan.models, counts, strict=True)
    )
    flops = sum(each) / plan.mesh.size
    return _compile(lower, state, where, plan.mesh, flops, flops, rounds, floor)


def compile_and_print(lowered) -> tuple[jax.stages.Compiled, str]:
    """Compiles a lowered program; returns it with its text.

    The compiler writes the text: `as_text` raises where a program has work for SparseCores (v5p,
    v6e), in a form that jaxlib does not know.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        written = list(pathlib.Path(folder).glob("*.after_codegen.txt"))
        # JAX's compilation cache returns a program without its dump
        return compiled, written[0].read_text() if len(written) == 1 else compiled.as_text()


def _compile(
    lower: Callable, state, where: Slice, mesh: Mesh, useful: float, executed: float,
    rounds: int = 1, floor: int = 0,
) -> Compiled:  # fmt: skip
    """Compiles; bytes, collectives and seconds are those of one of `rounds` in a call."""
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
    assert memory, "the TPU compiler analyses memory"
    peak = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
    program = read_program(text, rounds).part(rounds)
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
        floor_bytes=floor,
        seconds=times,
        mfu=(useful / (chip.tflops * 1e12) / times[0], useful / (chip.tflops * 1e12) / times[1]),
    )
