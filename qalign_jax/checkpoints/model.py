"""A model at rest: the folder that a stage or a conversion leaves, or a Hugging Face directory.

A stage's folder holds `model.json` (architecture, execution and prompt template), `tokenizer/` and
`checkpoints/<step>/` with `params`: all of them, or a part (part.py).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from qalign_jax import files
from qalign_jax.checkpoints import hf_config, hf_weights, integrity, lora, part
from qalign_jax.checkpoints.card import (
    Card,
    base_of,
    describe_model,
    read_card,
    stage_and_step,
    tokenizer_directory,
)
from qalign_jax.checkpoints.safetensors import TensorFiles
from qalign_jax.data.tokenizer import Tokenizer, load_tokenizer
from qalign_jax.faults import checksums
from qalign_jax.models.adapter import Adapter, attach, detach
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import (
    abstract_params,
    abstract_params_on,
    check_divides,
    hold_and_free,
    unhold_and_free,
)
from qalign_jax.models.quantization import INT8, check_dtypes
from qalign_jax.models.trainable import put
from qalign_jax.parallel.mesh import make_mesh

STORED = "stored"  # the weights' dtype on disk


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
    adapter: Adapter | None = None  # that lies beside the matrices in `params`

    @property
    def module(self) -> Llama:
        """The linen module of these parameters."""
        return Llama(self.config, self.execution, adapter=self.adapter)

    @property
    def base(self) -> "Model":
        """The model without its adapter, of the same arrays."""
        return dataclasses.replace(self, adapter=None, params=detach(self.params))


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
    adapted: bool | None = None,
) -> Model:
    """Loads a stage's folder, one of its checkpoints, a Hugging Face directory, or BASE+ADAPTER.

    Of a stage that trained a part the rest comes from its base, held as it was while the part was
    trained.

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
      adapted: whether an adapter stays beside its base's matrices, as decoding holds them, and is
        not merged; by default where they are int8. The base is then held as `dtype` and
        `weights_dtype` say, and not as it was in training.

    Raises:
      ValueError: there is no model, a part of it is missing or damaged (Damaged), or weights are
        not finite; a mesh that does not divide it; a `weights_dtype` that there is not; an adapter
        of another base.
    """
    check_dtypes(weights_dtype or "")
    name, mesh = path, mesh or make_mesh("", jax.local_devices()[:1])
    path = files.absolute(part.split(name)[0])
    if hf_config.is_hf_directory(path):
        weights = [file.name for file in path.glob("*.safetensors")]
        checksums.check_sums(path, ["config.json", *weights])
    else:
        checksums.check_sums(stage_and_step(path)[0], ["model.json"])
    card = read_card(name)
    check_divides(card.config, mesh, bool(card.part and card.part.trainable.adapter))
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if weights_dtype is not None and hf_config.is_hf_directory(path) and on_cpu:
        dtype = dtype or "float32"  # its own would be bf16, which CPUs compute slowly
    if dtype:
        card = card._replace(execution=dataclasses.replace(card.execution, dtype=dtype))
    if weights_dtype is not None:
        param_dtype = card.execution.dtype
    param_dtype = param_dtype or dtype or "float32"
    tokenizer = tokenizer or load_tokenizer(tokenizer_directory(path))
    if card.part:
        return _load_parted(name, card, mesh, param_dtype, tokenizer, weights_dtype, adapted)
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
        raise _repaired(error, stage_dir) from None
    if checked != dtype_there:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype_there), params)
        integrity.check_finite(params, step_dir)
    if weights_dtype is not None:
        int8, own = weights_dtype == INT8, card.execution.dtype
        params = hold_and_free(card.config, params, own, mesh, int8=int8)
    return Model(card.config, card.execution, params, tokenizer, card.template)


def _load_parted(
    name: str, card: Card, mesh: Mesh, param_dtype, tokenizer, weights_dtype, adapted
) -> Model:
    """As `load_model`, of a trained part and its base."""
    assert card.part
    trainable, own = card.part.trainable, card.execution.dtype
    base, trained = base_of(name), load_trained(name, card, mesh)  # raises before its base is read
    if param_dtype == STORED:
        param_dtype = "float32" if trainable.dtype == "float32" else "bfloat16"
    held = {"mesh": mesh, "tokenizer": tokenizer, "adapted": False}
    if adapted is None:
        adapted = weights_dtype == INT8
    if adapted and trainable.adapter:
        model = load_model(base, dtype=own, weights_dtype=weights_dtype or "", **held)
        pairs = jax.tree.map(lambda leaf: leaf.astype(own), trained)
        params = attach(trainable.adapter, model.params, pairs)
        return Model(*card[:2], params, tokenizer, card.template, trainable.adapter)
    wide, int8 = jnp.dtype(param_dtype).name, INT8 if trainable.int8 else ""
    # PEFT does not say what the adapter was trained beside
    beside = wide if lora.is_adapter(part.split(name)[1] or name) else trainable.dtype
    model = load_model(base, dtype=beside, weights_dtype=int8, **held)
    params = model.params
    if trainable.adapter:
        params = attach(trainable.adapter, params, trained)
    params = unhold_and_free(card.config, params, wide, mesh)
    if trainable.layers:
        params = put(trainable, params, trained)
    if weights_dtype is not None:
        params = hold_and_free(card.config, params, own, mesh, int8=weights_dtype == INT8)
    else:
        params = jax.tree.map(lambda leaf: leaf.astype(wide), params)
    return Model(*card[:2], params, tokenizer, card.template)


def load_trained(name, card: Card, mesh: Mesh):
    """The trained part of BASE+ADAPTER or of a stage's folder, f32, on a mesh.

    Raises:
      ValueError: as `load_model`.
    """
    assert card.part
    trainable, folder = card.part.trainable, files.absolute(part.split(name)[1] or name)
    if lora.is_adapter(folder) and trainable.adapter:
        return lora.read_pairs(folder, card.config, trainable.adapter, mesh)
    stage_dir, step = stage_and_step(folder)
    checksums.check_sums(stage_dir, ["model.json"])
    logging.info("loading %s at step %d: %s", stage_dir, step, trainable)
    try:
        step_dir = stage_dir / "checkpoints" / str(step)
        return part.load_part(step_dir, card.config, trainable, mesh)
    except checksums.Damaged as error:
        raise _repaired(error, stage_dir) from None


def _repaired(error: checksums.Damaged, stage_dir) -> checksums.Damaged:
    return checksums.Damaged(
        f"{error}. Delete {stage_dir} and start its run or conversion again, or name an "
        "earlier step of it"
    )


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
