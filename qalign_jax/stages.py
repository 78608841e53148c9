"""What the config of a stage asks for, for those who run it and those who compile it ahead."""

import dataclasses

from jax.sharding import Mesh
from ml_collections import ConfigDict

from qalign_jax.models.llama import REMAT_POLICIES, LlamaConfig
from qalign_jax.models.presets import preset
from qalign_jax.training.checkpoints import read_shape
from qalign_jax.training.optimizer import OptimizerConfig
from qalign_jax.training.step import rows_multiple

RANDOM = "random"  # weights that come from nowhere


def mesh_spec(config: ConfigDict, name: str) -> str:
    """The mesh of a stage as text: an evaluation's own, else the recipe's."""
    stage = config[name]
    return (stage.mesh if stage.kind == "evaluate" else "") or config.mesh


def system_sources(system: ConfigDict) -> list[tuple[str, str]]:
    """The weights that a system is decoded with, each with the preset where it is random."""
    sources = [(system.model, system.preset)]
    sources += [(system[key], system.small_preset) for key in ("expert", "antiexpert")]
    return [(source, preset_name) for source, preset_name in sources if source]


def model_shape(config: ConfigDict, source: str, preset_name: str, through=()) -> LlamaConfig:
    """The shape of a stage's or a directory's model, or of the preset where it is random.

    Raises:
      ValueError: a directory without a model, or a stage that leaves no weights.
    """
    if source in config.stages:
        if source in through or config[source].kind != "train":
            raise ValueError(f"no weights can come from {source}: it trains none, or from itself")
        return model_shape(config, config[source].init, config[source].preset, (*through, source))
    if source == RANDOM:
        return preset(preset_name)
    return read_shape(source)


def optimizer_config(stage: ConfigDict) -> OptimizerConfig:
    """The optimizer of a training stage."""
    return OptimizerConfig(stage.b1, stage.b2, stage.eps, stage.weight_decay, stage.clip)


def training_config(name: str, model: LlamaConfig, stage: ConfigDict) -> LlamaConfig:
    """The model as a training stage computes with it.

    Raises:
      ValueError: rows that are longer than the model reads.
    """
    if stage.length > model.max_length:
        raise ValueError(
            f"{name}: length={stage.length} is more than the model's {model.max_length}"
        )
    changes = {key: stage[key] for key in ("dtype", "remat") if stage[key]}
    return dataclasses.replace(model, **changes)


def check_stage(name: str, stage: ConfigDict) -> None:
    """Raises a ValueError where a stage's own values make no sense, whatever runs it."""
    if stage.kind not in ("tokenizer", "train", "evaluate"):
        raise ValueError(f"{name}: kind={stage.kind!r}; it is tokenizer, train or evaluate")
    if stage.kind == "tokenizer":
        return
    if stage.dtype not in ("", "float32", "bfloat16"):
        raise ValueError(f"{name}: dtype={stage.dtype!r}; it is float32 or bfloat16")
    if stage.kind == "evaluate":
        _check_evaluation(name, stage)
        least = {"slots": 1}
    else:
        least = {"length": 2, "batch_size": 1, "micro_batches": 1, "rows": 0}
        if stage.remat and stage.remat not in REMAT_POLICIES:
            known = ", ".join(REMAT_POLICIES)
            raise ValueError(f"{name}: remat={stage.remat!r}; it is one of {known}")
    for key, value in least.items():
        if stage[key] < value:
            raise ValueError(f"{name}: {key}={stage[key]}; expected at least {value}")


def _check_evaluation(name: str, stage: ConfigDict) -> None:
    for key in ("systems", "benchmarks"):
        if not stage[key]:
            raise ValueError(f"{name}: no {key} to evaluate")
    for benchmark, settings in stage.benchmarks.items():
        if settings.max_new_tokens < 0:
            raise ValueError(
                f"{name}.benchmarks.{benchmark}: max_new_tokens={settings.max_new_tokens}; "
                "expected at least 1, or 0 for the benchmark's own"
            )
    for system, settings in stage.systems.items():
        if bool(settings.expert) != bool(settings.antiexpert):
            raise ValueError(
                f"{name}.systems.{system}: give both expert and antiexpert, or neither"
            )


def check_rows(name: str, stage: ConfigDict, mesh: Mesh) -> None:
    """Raises a ValueError where the mesh does not divide a training stage's rows."""
    multiple, tensor = rows_multiple(mesh, stage.micro_batches), mesh.shape["tensor"]
    if stage.rows % multiple:
        raise ValueError(
            f"{name}: rows={stage.rows} must be a multiple of {multiple}, the parts that the "
            f"mesh and micro_batches={stage.micro_batches} split it in"
        )
    if stage.length % tensor:
        raise ValueError(f"{name}: length={stage.length} must be a multiple of tensor:{tensor}")
