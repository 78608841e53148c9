"""Trains a model on packed examples: question alignment, response alignment, pretraining."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from absl import logging

from qalign_jax import mistakes
from qalign_jax.ahead.jobs import TrainingJob, Workload
from qalign_jax.checkpoints.card import Card, describe_model
from qalign_jax.checkpoints.record import Record
from qalign_jax.checkpoints.state import Checkpoints
from qalign_jax.data import packing
from qalign_jax.data.batches import Batches, rows_for
from qalign_jax.data.examples import source_mistakes
from qalign_jax.data.tokenizer import Tokenizer
from qalign_jax.models.config import REMAT_POLICIES, Execution
from qalign_jax.models.flops import num_trained
from qalign_jax.models.llama import Llama
from qalign_jax.models.trainable import Trainable
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe import trained_part
from qalign_jax.recipe.stages.base import Run, Stage
from qalign_jax.recipe.weights import RANDOM, Source, Weights
from qalign_jax.training.anomalies import SKIP, STOP
from qalign_jax.training.loop import train
from qalign_jax.training.optimizer import OptimizerConfig, Schedule
from qalign_jax.training.step import (
    TrainState,
    abstract_state,
    init_state,
    make_train_step,
    rows_multiple,
)

# The least and the most of a key.
LIMITS = {
    **dict.fromkeys(("batch_size", "micro_batches", "save_every", "keep"), (1, math.inf)),
    **dict.fromkeys(("rows", "steps", "lr", "clip", "weight_decay", "eps"), (0, math.inf)),
    "epochs": (0, 1e6),
    "warmup": (0, 1),
    **dict.fromkeys(("b1", "b2"), (0, 0.999999)),  # 1 divides by 0
    "length": (2, math.inf),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """A training stage; the defaults are the paper's (section 4.1 and its authors' scripts)."""

    init: str  # the weights: "random", a stage, or a directory
    preset: str = ""  # the size of random weights, from models/presets.py
    data: Mapping[str, Any]  # name -> data set (parts.source)
    template: str = ""  # "" is the recipe's
    length: int = 512
    pack: bool = True
    batch_size: int = 128  # examples a step, on average when packed
    rows: int = 0  # rows a step; 0 follows from batch_size
    epochs: float = 3.0
    steps: int = 0  # 0 follows from epochs
    lr: float = 2e-5
    warmup: float = 0.03  # share of the steps
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    micro_batches: int = 1
    dtype: str = ""  # "" is the model's own, bfloat16 but for tiny presets
    remat: str = ""  # full, qkvo, qkvo_mlp, none; "" is the model's own
    adapter: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict(trained_part.UNSET["adapter"])
    )
    trainable: str = ""  # "" is all; layers:20-25/mlp trains matrices of some layers
    weights_dtype: str = ""  # int8: of the frozen matrices
    save_every: int = 500
    on_nan: str = STOP  # of a loss or gradient that is not finite; skip leaves its update out
    keep: int = 1  # checkpoints once it is done; while it trains, two at least

    FREE: ClassVar[frozenset[str]] = Stage.FREE | {
        "micro_batches",
        "remat",
        "save_every",
        "keep",
        "on_nan",
    }

    @property
    def starts_from(self) -> Source:
        return Source(self.init, self.preset)

    def settings(self) -> dict[str, Any]:
        unset = [key for key, value in trained_part.UNSET.items() if getattr(self, key) == value]
        return {key: value for key, value in super().settings().items() if key not in unset}

    def check(self) -> None:
        found = mistakes.out_of_range(f"{self.name}.", vars(self), LIMITS)
        choices = {"dtype": ("", "float32", "bfloat16"), "remat": ("", *REMAT_POLICIES)}
        choices["on_nan"] = (STOP, SKIP)
        for key, known in choices.items():
            if (value := getattr(self, key)) not in known:
                wanted = ", ".join(filter(None, known))
                found.append(f"{self.name}.{key}={value!r}; it is one of {wanted}")
        found += trained_part.mistakes_in(
            self.name, self.adapter, self.trainable, self.weights_dtype
        )
        if not self.steps and self.epochs == 0:
            found.append(mistakes.expected(f"{self.name}.epochs", self.epochs, "above 0"))
        mistakes.refuse(found)

    def check_inputs(self, run: Run) -> None:
        found = source_mistakes(f"{self.name}.data", self.data)
        if not self.data:
            found.append(f"{self.name}.data: no data sets; name at least one")
        weights = run.weights.resolve(self.starts_from)
        if run.weights.exists(self.starts_from):
            found += mistakes.of(f"{self.name}.init: ", weights.check_vocabulary)
        if self.init == RANDOM and not self._trainable().is_whole:
            found.append(
                f"{self.name}.init={RANDOM!r}: weights that are not trained must be on disk; "
                "name a Hugging Face directory, a stage or its folder"
            )
        elif run.weights.knows(self.starts_from):
            unread = mistakes.of(f"{self.name}.init: ", weights.part)
            found += unread or mistakes.of(
                f"{self.name}.", trained_part.continues, self.adapter, weights
            )
        mistakes.refuse(found)

    def sources(self) -> list[Source]:
        tokenizer = [Source(self.tokenizer)] if self.tokenizer else []
        return [self.starts_from, *tokenizer]

    def prepare(self, run: Run) -> dict[str, Any]:
        weights = run.weights.resolve(self.starts_from)
        mistakes.refuse(mistakes.of(f"{self.name}.init: ", weights.check_vocabulary))
        return dict(self.packed(run, weights.tokenizer()).stats)

    def jobs(self, run: Run, workload: Workload) -> dict[str, TrainingJob]:
        card = run.weights.resolve(self.starts_from).card()
        model = Llama(card.config, self._execution(card.execution))
        expected = self.batch_size / workload.examples_per_row
        job = TrainingJob(
            model, self._optimizer, self.mesh, self.micro_batches, self.rows, expected,
            self.length, self._trainable(model.execution.dtype),
        )  # fmt: skip
        return {"": job}

    def run(self, run: Run) -> dict[str, Any]:
        folder, mesh = run.workdir / self.name, make_mesh(self.mesh)
        weights = run.weights.resolve(self.starts_from)
        tokenizer = weights.tokenizer()
        packed = self.packed(run, tokenizer)
        rows = self.rows or rows_for(
            self.batch_size, packed, rows_multiple(mesh, self.micro_batches)
        )
        batches = Batches(packed, rows, self.seed)
        steps = self.steps or batches.steps(self.epochs)
        config, execution, *_ = weights.loaded_card()
        module = Llama(config, self._execution(execution))
        trainable = self._trainable(module.execution.dtype)
        logging.info(
            "%s: %s of %s parameters (%s), %d steps of %d rows (%.1f examples)",
            self.name, f"{num_trained(config, trainable):,}", f"{config.num_parameters:,}",
            trainable, steps, rows, rows * packed.stats["examples_per_row"],
        )  # fmt: skip
        run.workdir.write_json(f"{self.name}/packing.json", dict(packed.stats))
        self._record(run, weights, packed, tokenizer)
        if jax.process_index() == 0:
            part = trained_part.part_of(self.adapter, trainable, weights, run.weights)
            card = Card(module.config, module.execution, self.template, part)
            describe_model(folder, card, tokenizer)

        step = make_train_step(
            module, self._optimizer, mesh, self.micro_batches, self.on_nan == SKIP, trainable,
            self.seed,
        )  # fmt: skip
        checkpoints = Checkpoints(folder, self.save_every, self.keep)
        try:
            wanted = abstract_state(config, self._optimizer, mesh, trainable).parts()
            first, parts = checkpoints.restore(wanted) or (0, {})
            if first < steps:  # else it was stopped between the last save and done.json
                frozen = {}
                if not trainable.is_whole or not parts:
                    params, frozen = trained_part.initial(
                        self.adapter, trainable, weights, run.weights, mesh, self.seed
                    )
                if parts:
                    logging.info("%s: goes on from step %d", self.name, first)
                    state = TrainState.from_parts(parts, frozen)
                else:
                    state = init_state(config, self._optimizer, mesh, params, trainable, frozen)
                train(
                    state, step, batches, Schedule(self.lr, steps, self.warmup),
                    config=config, mesh=mesh, checkpoints=checkpoints, stage_dir=folder,
                    name=self.name, profile=run.profile, on_nan=self.on_nan, trainable=trainable,
                )  # fmt: skip
            checkpoints.trim()
        finally:
            checkpoints.close()
        return {"steps": steps, "rows": rows}

    def packed(self, run: Run, tokenizer: Tokenizer) -> packing.PackedData:
        """The packed data, built where it is not in the cache."""
        try:
            return packing.build(
                self.data, tokenizer, self.template, self.length, run.cache_dir, self.seed,
                self.pack,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    @property
    def leaves_part(self) -> Trainable | None:
        trainable = self._trainable()
        return None if trainable.is_whole else trainable

    @property
    def keeps_base(self) -> bool:
        return not self.adapter.get("merge")

    def _trainable(self, dtype: str = "float32") -> Trainable:
        keys = (self.adapter, self.trainable, self.weights_dtype)
        return trained_part.trainable_of(*keys, dtype)

    @property
    def _optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(self.b1, self.b2, self.eps, self.weight_decay, self.clip)

    def _execution(self, execution: Execution) -> Execution:
        """The model's own execution, changed by the stage's dtype and remat."""
        changes = {"dtype": self.dtype, "remat": self.remat}
        return dataclasses.replace(execution, **{key: v for key, v in changes.items() if v})

    def _record(
        self, run: Run, weights: Weights, packed: packing.PackedData, tokenizer: Tokenizer
    ) -> None:
        sources = {
            "data": packed.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "init": weights.fingerprint(),
        }
        run.workdir.record(self.name, Record(self.settings(), sources))


STAGE = Train
