"""Jobs: the programs of a stage to be compiled, and the settings to try in their place."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

from qalign_jax import mistakes
from qalign_jax.ahead.compile import (
    Compiled,
    compile_prefill,
    compile_round,
    compile_training,
)
from qalign_jax.data.batches import nearest_rows
from qalign_jax.decoding.draft_length import best_length, draft_kind, named_kind
from qalign_jax.decoding.memory import MOST_SLOTS, with_slots
from qalign_jax.decoding.plan import MODEL, Plan, abstract_params, make_plan, with_room
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.flops import num_trained
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import abstract_held
from qalign_jax.models.quantization import INT8
from qalign_jax.models.trainable import WHOLE, Trainable, frozen_shapes
from qalign_jax.parallel.chips import CHIPS, GIB, Slice
from qalign_jax.parallel.mesh import batch_shards, local_bytes, make_mesh
from qalign_jax.training.optimizer import OptimizerConfig
from qalign_jax.training.step import make_train_step, rows_multiple


@dataclasses.dataclass(frozen=True)
class Workload:
    """Assumptions about data that has not been read yet.

    2.4 examples a packed row are measured on question pairs and GSM8K at 512 tokens with LLaMA2's
    tokenizer; 1 makes the most rows.
    """

    examples_per_row: float = 2.4
    prompt_tokens: int = 512
    acceptance: float = 0.9

    def __post_init__(self):
        if not 0 <= self.acceptance <= 1:  # NaN is in no range
            raise ValueError(f"acceptance={self.acceptance}: expected a share from 0 to 1")


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """A training stage's step; equal jobs share a program."""

    model: Llama
    optimizer: OptimizerConfig
    mesh: str
    micro_batches: int
    rows: int  # 0: the nearest to `expected_rows` that the mesh divides
    expected_rows: float
    length: int
    trainable: Trainable = WHOLE

    @property
    def least_bytes(self) -> int:
        """Weights and moments, of all devices."""
        config = self.model.config
        frozen = jax.tree.leaves(frozen_shapes(config, self.trainable)[0])
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in frozen)
        return num_trained(config, self.trainable) * 12 + held

    def check(self, devices: Sequence[Any]) -> None:
        """Raises a ValueError where devices, mesh, rows and model do not fit each other."""
        longest, found = self.model.config.max_length, []
        if self.length > longest:
            found.append(f"length={self.length} is more than the model's {longest}")
        try:
            mesh = make_mesh(self.mesh, devices)
        except ValueError as error:
            raise mistakes.Mistakes([*found, str(error)]) from None
        multiple, tensor = rows_multiple(mesh, self.micro_batches), mesh.shape["tensor"]
        if self.rows % multiple:
            found.append(
                f"rows={self.rows} must be a multiple of {multiple}, the parts that the mesh and "
                f"micro_batches={self.micro_batches} split it in"
            )
        if self.length % tensor:
            found.append(f"length={self.length} must be a multiple of tensor:{tensor}")
        program = (self.model, self.optimizer, mesh, self.micro_batches, False, self.trainable)
        mistakes.refuse(found + mistakes.of("", make_train_step, *program))

    def asked(self, where: Slice) -> dict:
        """The settings that are compiled, for the report."""
        mesh = make_mesh(self.mesh, where.devices())
        multiple = rows_multiple(mesh, self.micro_batches)
        return {
            "mesh": self.mesh,
            "remat": self.model.execution.remat,
            "micro_batches": self.micro_batches,
            "rows": self.rows or nearest_rows(self.expected_rows, multiple),
            "length": self.length,
        } | self._part()

    def _part(self) -> dict:
        """What is trained, where that is not all."""
        if self.trainable.is_whole:
            return {}
        dtype = INT8 if self.trainable.int8 else ""
        return {"trains": str(self.trainable), "weights_dtype": dtype}

    def compile(self, where: Slice) -> dict[str, Compiled]:
        """The compiled programs by name; the only one has the name "".

        Raises:
          ValueError: as `compile_training`.
        """
        rows = self.asked(where)["rows"]
        shape = (rows, self.length, self.micro_batches)
        options = (self.optimizer, self.trainable)
        return {"": compile_training(self.model, where, self.mesh, *shape, *options)}

    def smaller(self) -> list["TrainingJob"]:
        """None: what a step computes is as the recipe says."""
        return []

    def alternatives(self, where: Slice, remats=("full",)) -> Iterator["TrainingJob"]:
        """Other settings: whole batches first, then a micro-batch for every row of a device."""
        seen = set()
        for spec in (self.mesh, *meshes(where, self.model.config)):
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
                    execution = dataclasses.replace(self.model.execution, remat=remat)
                    model = self.model.clone(execution=execution)
                    yield dataclasses.replace(
                        self, model=model, mesh=spec, micro_batches=micro_batches
                    )


@dataclasses.dataclass(frozen=True)
class DecodingJob:
    """The prefill and the decode step of a system that an evaluation scores."""

    models: tuple[Llama, ...]
    mesh: str
    slots: int  # 0: as many as memory holds
    prompt: int
    new: int
    weights_dtype: str = ""  # both as of Engine
    cache_dtype: str = ""
    draft: Llama | Literal["lookup"] | None = None  # as of Engine
    draft_tokens: int | None = None  # None: "auto"
    acceptance: float = Workload.acceptance  # the share of compared drafts that is kept
    shared: bool = False  # as of Plan

    @property
    def _draft_kind(self) -> str:
        return draft_kind(named_kind(self.draft), len(self.models), self.draft_tokens)

    @property
    def _held(self) -> tuple[Llama, ...]:
        if isinstance(self.draft, Llama) and self._draft_kind == MODEL:
            return (*self.models, self.draft)
        return self.models

    @property
    def least_bytes(self) -> int:
        """The weights, of all devices."""
        int8 = self.weights_dtype == INT8
        held = (
            abstract_held(model.config, model.execution.dtype, int8=int8, adapter=model.adapter)
            for place, model in enumerate(self._held)
            if not (self.shared and place == 2)
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(list(held)))

    def check(self, devices: Sequence[Any]) -> None:
        """Raises a ValueError where the mesh does not divide the devices or a model, or where
        prompts leave no room for answers.
        """
        room = self.plan(devices).length
        if self.prompt >= room:
            raise ValueError(f"prompts of {self.prompt} tokens leave no room in the models' {room}")

    def plan(self, devices: Sequence[Any]) -> Plan:
        """What an engine of the job compiles on these devices; 0 slots are those that memory holds.

        Raises:
          ValueError: a mesh that does not divide the devices or the models.
        """
        plan = make_plan(
            self._held, Sampling(), make_mesh(self.mesh, devices), self.slots,
            weights_dtype=self.weights_dtype, cache_dtype=self.cache_dtype, draft=self._draft_kind,
            shared=self.shared,
        )  # fmt: skip
        return with_room(plan, self.prompt + self.new)

    def _on(self, where: Slice) -> Plan:
        """The plan with the slots that a device's memory holds beside the weights, where 0 asks so.

        Where it does not hold the weights, the least, for a report of what they need.
        """
        plan = self.plan(where.devices())
        if self.slots or not plan.mesh:
            return plan
        free = CHIPS[where.chip].hbm_gib * GIB - local_bytes(abstract_params(plan))
        try:
            return with_slots(plan, MOST_SLOTS, int(free))
        except ValueError:
            return dataclasses.replace(plan, slots=batch_shards(plan.mesh))

    def _drafts(self, plan: Plan) -> int:
        if self.draft_tokens is not None or not plan.draft:
            return self.draft_tokens or 0
        return best_length(plan, plan.length, self.acceptance)

    def asked(self, where: Slice) -> dict:
        """The settings that are compiled, for the report."""
        plan = self._on(where)
        return {
            "mesh": self.mesh,
            "weights_dtype": self.weights_dtype,
            "cache_dtype": self.cache_dtype,
            "slots": plan.slots,
            "length": self.prompt + self.new,
        } | ({"draft": plan.draft} if plan.draft else {})

    def compile(self, where: Slice) -> dict[str, Compiled]:
        """The compiled programs by name."""
        plan = self._on(where)
        found = {
            "prefill": compile_prefill(plan, where, self.prompt),
            "decode": compile_round(plan, where, plan.length),
        }
        if drafts := self._drafts(plan):
            found["speculative decode"] = compile_round(
                plan, where, plan.length, drafts, self.acceptance
            )
        return found

    def alternatives(self, where: Slice) -> Iterator["DecodingJob"]:
        """Other meshes, those with the most tensor first."""
        for tensor in (8, 4, 2, 1):
            data, rest = divmod(where.size, tensor)
            if not rest and all(model.config.n_kv_heads % tensor == 0 for model in self.models):
                yield dataclasses.replace(self, mesh=f"data:{data},tensor:{tensor}")

    def smaller(self) -> list["DecodingJob"]:
        """The same with int8 weights, then with an int8 cache too."""
        weights = dataclasses.replace(self, weights_dtype=INT8)
        both = dataclasses.replace(weights, cache_dtype=INT8)
        return [job for job in dict.fromkeys((weights, both)) if job != self]


Job = TrainingJob | DecodingJob


def check_jobs(stage: str, jobs: Mapping[str, Job], devices: Sequence[Any]) -> None:
    """Raises a ValueError that names the stage and all that does not fit the devices."""
    mistakes.refuse(
        line for job in jobs.values() for line in mistakes.of(f"{stage}: ", job.check, devices)
    )


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
    """A torus' axes, joined to two."""
    shape = tuple(size for size in shape if size > 1) or (1,)
    return math.prod(shape[:-1]), shape[-1]
