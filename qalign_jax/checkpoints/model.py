"""A model at rest: the folder that a stage or a conversion leaves, or a Hugging Face directory.

A stage's folder holds `model.json` (architecture, execution and prompt template), `tokenizer/` and
`checkpoints/<step>/` with `params`.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from qalign_jax import files, schema
from qalign_jax.checkpoints import hf_config, hf_weights, integrity, lora
from qalign_jax.checkpoints.safetensors import TensorFiles
from qalign_jax.data import prompts
from qalign_jax.data.tokenizer import Tokenizer, load_tokenizer
from qalign_jax.faults import checksums
from qalign_jax.models.config import Execution, LlamaConfig, RopeScaling
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import (
    abstract_params,
    abstract_params_on,
    check_divides,
    hold_and_free,
)
from qalign_jax.models.quantization import INT8, check_dtypes
from qalign_jax.parallel.mesh import make_mesh

_CARD = {
    "model": {"rope_scaling": schema.Maybe({...: schema.ANYTHING})},
    "template": schema.TEXT,
}
STORED = "stored"  # the weights' dtype on disk
UNFINISHED = "conversion.unfinished"  # a file in a folder that a conversion still writes


class Card(NamedTuple):
    """model.json: all of a model but its weights and its tokenizer."""

    config: LlamaConfig
    execution: Execution
    template: str


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as it is loaded; `template` is the prompt that it was trained with.

    `params` are those that training reads, or as decoding holds them.
    """

    config: LlamaConfig
    execution: Execution
    params: dict
    tokenizer: Tokenizer
    template: str

    @property
    def module(self) -> Llama:
        """The linen module of these parameters."""
        return Llama(self.config, self.execution)


def describe_model(stage_dir, card: Card, tokenizer: Tokenizer) -> None:
    """Writes what is needed beside the weights: model.json, the tokenizer, SHA256SUMS of both."""
    stage_dir = epath.Path(stage_dir)
    model = dataclasses.asdict(card.config) | dataclasses.asdict(card.execution)
    files.write_json(stage_dir / "model.json", {"model": model, "template": card.template})
    tokenizer.save(stage_dir / "tokenizer")
    others = {path.name for path in stage_dir.iterdir()} - {"model.json", "tokenizer"}
    checksums.write_sums(stage_dir, besides=others)


def save_model(stage_dir, model: Model) -> None:
    """Writes a model as a finished stage leaves it, its weights as step 0 in their own dtype.

    One parameter is written at a time, in chunks: the host holds no second copy of the model.
    """
    card = Card(model.config, model.execution, model.template)
    describe_model(stage_dir, card, model.tokenizer)
    metadata: Any = integrity.metadata(0, {"params": model.params})
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = 2 * max(x.nbytes for x in jax.tree.leaves(model.params))
    context.array.saving.storage_options.chunk_byte_size = 64 << 20
    with context:
        ocp.save_checkpointables(
            files.absolute(stage_dir) / "checkpoints" / "0",
            {"params": model.params},
            custom_metadata=metadata,
        )


def load_model(
    path,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    param_dtype: DTypeLike | None = None,
    tokenizer: Tokenizer | None = None,
    weights_dtype: str | None = None,
) -> Model:
    """Loads a stage's folder, one of its checkpoints, or a Hugging Face directory.

    Args:
      path: the directory, local or gs://.
      mesh: where the weights go, sharded by the table in parallel/mesh.py; by default this
        process's first device.
      dtype: the compute dtype, and that of the weights in memory; by default the model's own
        compute dtype, with weights in f32. A Hugging Face directory has bf16, and f32 for decoding
        on CPUs.
      param_dtype: the weights' dtype in memory where it is another; "stored" is that on disk.
      tokenizer: instead of the one in the directory.
      weights_dtype: for decoding alone, how its layers' matrices are held (`hold` of
        models/params.py): "" in the compute dtype, or "int8". A Hugging Face directory is
        quantised tensor by tensor as it is read; of a stage's folder the weights are read in the
        compute dtype, which must fit in memory, and quantised one parameter after the other.

    Raises:
      ValueError: there is no model, a part of it is missing or damaged (Damaged), or weights are
        not finite; a mesh that does not divide it; a `weights_dtype` that there is not.
    """
    check_dtypes(weights_dtype or "")
    path = files.absolute(path)
    mesh = mesh or make_mesh("", jax.local_devices()[:1])
    if hf_config.is_hf_directory(path):
        weights = [file.name for file in path.glob("*.safetensors")]
        checksums.check_sums(path, ["config.json", *weights])
    else:
        checksums.check_sums(stage_and_step(path)[0], ["model.json"])
    card = read_card(path)
    check_divides(card.config, mesh)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if weights_dtype is not None and hf_config.is_hf_directory(path) and on_cpu:
        dtype = dtype or "float32"  # its own would be bf16, which CPUs compute slowly
    if dtype:
        card = card._replace(execution=dataclasses.replace(card.execution, dtype=dtype))
    if weights_dtype is not None:
        param_dtype = card.execution.dtype
    param_dtype = param_dtype or dtype or "float32"
    tokenizer = tokenizer or load_tokenizer(tokenizer_directory(path))
    if hf_config.is_hf_directory(path):
        tensors = TensorFiles(path)
        if param_dtype == STORED:
            param_dtype = hf_weights.stored_dtype(tensors)
        params = hf_weights.read_params(tensors, card.config, mesh, param_dtype, weights_dtype)
        return Model(card.config, card.execution, params, tokenizer, card.template)
    stage_dir, step = stage_and_step(path)
    step_dir = stage_dir / "checkpoints" / str(step)
    try:
        own = _stored_dtype(step_dir, card.config)
        dtype_there = own if param_dtype == STORED else jnp.dtype(param_dtype)
        # there are checksums of the arrays' own dtype and of those that models are loaded in
        checked = dtype_there if dtype_there.name in integrity.LOADED else own
        wanted = abstract_params_on(card.config, mesh, checked)
        if weights_dtype is not None:
            wanted = _with_wide_norms(wanted)
        logging.info("loading %s at step %d", stage_dir, step)
        params = integrity.load(step_dir, {"params": wanted})["params"]
    except checksums.Damaged as error:
        raise checksums.Damaged(
            f"{error}. Delete {stage_dir} and start its run or conversion again, or name an "
            "earlier step of it"
        ) from None
    if checked != dtype_there:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype_there), params)
        integrity.check_finite(params, step_dir)
    if weights_dtype is not None:
        int8, own = weights_dtype == INT8, card.execution.dtype
        params = hold_and_free(card.config, params, own, mesh, int8=int8)
    return Model(card.config, card.execution, params, tokenizer, card.template)


def _with_wide_norms(wanted):
    """The scales of norms in f32, as models compute with them."""

    def widen(path, leaf):
        return leaf.update(dtype=jnp.float32) if path[-1].key == "scale" else leaf

    return jax.tree_util.tree_map_with_path(widen, wanted)


def _stored_dtype(step_dir: epath.Path, config: LlamaConfig) -> np.dtype:
    """The dtype of a checkpoint's parameters, whose shapes are those of model.json."""
    stored = integrity.stored_params(step_dir)

    def check(path, found, expected):
        if tuple(found.shape) != tuple(expected.shape):
            name = "/".join(part.key for part in path)
            raise ValueError(f"{name} has shape {found.shape}, and {expected.shape} there")

    try:
        jax.tree_util.tree_map_with_path(check, stored, abstract_params(config)[0])
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise checksums.Damaged(
            f"{step_dir} is damaged, or not of the model in model.json ({reason})"
        ) from None
    return stored["norm"]["scale"].dtype


def read_card(path) -> Card:
    """All but weights and tokenizer of a directory that `load_model` takes.

    Raises:
      ValueError: there is no model, or a value of it is none that a model has.
    """
    path = files.absolute(path)
    if hf_config.is_hf_directory(path):
        return Card(hf_config.read_config(path), Execution(), hf_config.read_template(path))
    file = stage_and_step(path)[0] / "model.json"
    remedy = "convert or train it again"
    card = files.read_json(file, remedy)
    schema.check(card, _CARD, f"{file}: not a model's", remedy)
    try:
        model = dict(card["model"])
        if model["rope_scaling"] is not None:
            model["rope_scaling"] = _made(RopeScaling, model["rope_scaling"])
        names = {field.name for field in dataclasses.fields(Execution)}
        execution = Execution(**{name: model.pop(name) for name in names & model.keys()})
        prompts.template_text(card["template"])
        return Card(_made(LlamaConfig, model), execution, card["template"])
    except ValueError as error:
        raise ValueError(f"{file}: not a model's ({error}); {remedy}") from None


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    """The dataclass of a kind from its fields in model.json."""
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{kind.__name__} has no key {unknown[0]!r}")
    needed = [name for name, default in known.items() if default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{kind.__name__} needs the key {missing[0]!r}")
    return kind(**values)


def tokenizer_directory(path) -> epath.Path:
    """Where a directory that `load_model` takes keeps its tokenizer, if it has one."""
    path = files.absolute(path)
    return path if hf_config.is_hf_directory(path) else stage_and_step(path)[0] / "tokenizer"


def fingerprint(path) -> str:
    """16 hexadecimal digits that change with the weights of a directory that `load_model` takes.

    They come from the values in a Hugging Face directory. In a stage's folder they come from
    stage.json, the settings and sources that determine its weights, and from the step.

    Raises:
      ValueError: there is no model.
    """
    path = files.absolute(path)
    if hf_config.is_hf_directory(path):
        return TensorFiles(path).fingerprint()
    stage_dir, step = stage_and_step(path)
    if not (stage_dir / "stage.json").exists():
        raise ValueError(f"{stage_dir}: stage.json is missing, which a run or a conversion writes")
    digest = hashlib.sha256((stage_dir / "stage.json").read_bytes() + b"%d" % step)
    return digest.hexdigest()[:16]


def hub_remedy(name: str | os.PathLike) -> str:
    """What to do about a directory that does not exist and may be a model's name on the Hub."""
    parts = () if files.is_remote(name) else pathlib.Path(os.path.relpath(name or ".")).parts
    if len(parts) != 2 or ".." in parts or os.path.exists(parts[0]):
        return ""
    return (
        "; a model of the Hugging Face Hub is downloaded first: "
        f"hf download {'/'.join(parts)} --local-dir DIR"
    )


def stage_and_step(path) -> tuple[epath.Path, int]:
    """A stage's folder and its newest step, from the folder, its checkpoints/ or one step's folder.

    Raises:
      ValueError: the path is none of these, or no step is complete.
    """
    if path.name == "checkpoints":
        stage_dir = path.parent
    elif path.parent.name == "checkpoints" and path.name.isdecimal():
        stage_dir = path.parent.parent
    else:
        stage_dir = path
    if lora.is_adapter(path):
        raise ValueError(
            f"{path} is a LoRA adapter; merge it first: python -m qalign_jax.convert "
            f"--source=BASE --adapter={path} --target=DIR"
        )
    if (stage_dir / UNFINISHED).exists():
        raise ValueError(f"{stage_dir}: its conversion has not ended; convert it once more")
    if not (stage_dir / "model.json").exists() or not path.is_dir():
        raise ValueError(
            f"{path}: no model here; expected a stage's folder of a run (with model.json and "
            f"checkpoints/) or a Hugging Face directory (with config.json){hub_remedy(path)}"
        )
    named = path.name.isdecimal() and stage_dir != path
    steps = [path] if named else (stage_dir / "checkpoints").glob("*")
    complete = [int(step.name) for step in steps if step.name.isdecimal() and _is_complete(step)]
    if not complete:
        raise ValueError(f"{stage_dir}: no checkpoint is complete yet; let its training finish")
    return stage_dir, max(complete)


def _is_complete(step: epath.Path) -> bool:
    """Whether all of a checkpoint is there: Orbax renames it then, or marks it on object stores."""
    return not files.is_remote(step) or (step / "commit_success.txt").exists()
