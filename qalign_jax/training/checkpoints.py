"""Checkpoints on Orbax: a stage's state while it trains, its weights when it is done.

A stage's folder holds `model.json` (the model's shape and its prompt template), `tokenizer/` and
`checkpoints/<step>/` with `params` and, until training is done, `optimizer`.
"""

import dataclasses
import json
import os

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from qalign_jax.data.tokenizer import load_tokenizer
from qalign_jax.models import hf, lora
from qalign_jax.models.attention import RopeScaling
from qalign_jax.models.llama import LlamaConfig, abstract_params
from qalign_jax.models.tensor_files import TensorFiles
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.step import TrainState, abstract_params_on

STORED = "stored"  # the weights' dtype on disk
UNFINISHED = "conversion.unfinished"  # in a folder that a conversion still writes


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as it is loaded: shape, weights, tokenizer, and the template it was trained with."""

    config: LlamaConfig
    params: dict
    tokenizer: object
    template: str


class Checkpoints:
    """The training state of one stage, saved asynchronously every `every` steps."""

    def __init__(self, stage_dir, every: int, keep: int = 1):
        self.every = every
        self._root = absolute(stage_dir) / "checkpoints"
        self._checkpointer = ocp.training.Checkpointer(
            self._root,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """The newest complete step, None before the first."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, final: bool = False) -> None:
        """Saves `state` as `step`; the final one holds the weights alone."""
        if step == self.latest():
            return
        saved = {"params": state.params}
        if not final:
            saved["optimizer"] = {"step": state.step, "moments": state.moments}
        self._checkpointer.save_checkpointables_async(step, saved, force=True)
        if final:
            self.wait()

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state at `step`, with the shardings of `abstract`."""
        wanted = {
            "params": abstract.params,
            "optimizer": {"step": abstract.step, "moments": abstract.moments},
        }
        loaded = self._checkpointer.load_checkpointables(step, wanted)
        return TrainState(params=loaded["params"], **loaded["optimizer"])

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._checkpointer.wait()

    def close(self) -> None:
        self._checkpointer.close()


def describe_model(stage_dir, config: LlamaConfig, tokenizer, template: str) -> None:
    """Writes what is needed beside the weights to use them: shape, template, tokenizer."""
    stage_dir = epath.Path(stage_dir)
    stage_dir.mkdir(parents=True, exist_ok=True)
    card = {"model": dataclasses.asdict(config), "template": template}
    (stage_dir / "model.json").write_text(json.dumps(card, indent=1) + "\n")
    tokenizer.save(stage_dir / "tokenizer")


def save_model(stage_dir, model: Model) -> None:
    """Writes a model as a finished stage leaves it, its weights as step 0 in their own dtype.

    One parameter is written at a time, in chunks: the host holds no second copy of the model.
    """
    describe_model(stage_dir, model.config, model.tokenizer, model.template)
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = 2 * max(x.nbytes for x in jax.tree.leaves(model.params))
    context.array.saving.storage_options.chunk_byte_size = 64 << 20
    with context:
        ocp.save_checkpointables(
            absolute(stage_dir) / "checkpoints" / "0", {"params": model.params}
        )


def load_model(
    path, *, mesh: Mesh | None = None, dtype: str | None = None, param_dtype: str | None = None
) -> Model:
    """Loads a stage's folder of ours, one of its checkpoints, or a Hugging Face directory.

    Args:
      path: the directory, local or gs://.
      mesh: where the weights go, sharded by the table in parallel/mesh.py; by default this
        process's first device.
      dtype: the weights' dtype in memory and of the arithmetic; by default the stored weights as
        f32, with the model's own arithmetic.
      param_dtype: the weights' dtype in memory where it is another; "stored" is that on disk.

    Raises:
      ValueError: there is no model, or a part of it is missing.
    """
    path = absolute(path)
    mesh = mesh or make_mesh("", jax.local_devices()[:1])
    param_dtype = param_dtype or dtype or "float32"
    if hf.is_hf_directory(path):
        config, tokenizer = _with_dtype(hf.read_config(path), dtype), load_tokenizer(path)
        tensors = TensorFiles(path)
        if param_dtype == STORED:
            param_dtype = hf.stored_dtype(tensors)
        params = hf.read_params(tensors, config, mesh, param_dtype)
        return Model(config, params, tokenizer, hf.read_template(path))
    if lora.is_adapter(path):
        raise ValueError(
            f"{path} is a LoRA adapter; merge it first: python -m qalign_jax.convert "
            f"--source=BASE --adapter={path} --target=DIR"
        )
    stage_dir, step = stage_and_step(path)
    config, template = _read_card(stage_dir)
    config = _with_dtype(config, dtype)
    step_dir = stage_dir / "checkpoints" / str(step)
    try:
        stored = ocp.checkpointables_metadata(step_dir).metadata["params"]
        _check_stored(stored, abstract_params(config)[0])
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{step_dir}: not a checkpoint of this model ({reason})") from None
    if param_dtype == STORED:
        param_dtype = stored["norm"]["scale"].dtype
    wanted = abstract_params_on(config, mesh, param_dtype)
    logging.info("loading %s at step %d", stage_dir, step)
    loaded = ocp.load_checkpointables(step_dir, {"params": wanted})
    return Model(config, loaded["params"], load_tokenizer(stage_dir / "tokenizer"), template)


def _check_stored(stored, shapes) -> None:
    def check(path, found, expected):
        if tuple(found.shape) != tuple(expected.shape):
            name = "/".join(part.key for part in path)
            raise ValueError(
                f"{name} has shape {found.shape}, model.json makes it {expected.shape}"
            )

    jax.tree_util.tree_map_with_path(check, stored, shapes)


def read_shape(path) -> LlamaConfig:
    """The shape of the model in a directory that `load_model` takes; no weight is read.

    Raises:
      ValueError: there is no model.
    """
    path = absolute(path)
    if hf.is_hf_directory(path):
        return hf.read_config(path)
    return _read_card(stage_and_step(path)[0])[0]


def absolute(path) -> epath.Path:
    """The path from the root, `~` expanded: Orbax takes no other."""
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(os.path.abspath(path.expanduser()))


def _with_dtype(config: LlamaConfig, dtype: str | None) -> LlamaConfig:
    return config if dtype is None else dataclasses.replace(config, dtype=dtype)


def _read_card(stage_dir) -> tuple[LlamaConfig, str]:
    try:
        card = json.loads((stage_dir / "model.json").read_text())
        shape = card["model"]
        if shape["rope_scaling"] is not None:
            shape["rope_scaling"] = RopeScaling(**shape["rope_scaling"])
        return LlamaConfig(**shape), card["template"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{stage_dir / 'model.json'}: not a model's ({error!r})") from None


def stage_and_step(path) -> tuple[epath.Path, int]:
    """A stage's folder and its newest step, from the folder, its checkpoints/ or one step of them.

    Raises:
      ValueError: there is no such thing, or no step is complete.
    """
    if path.name == "checkpoints":
        stage_dir = path.parent
    elif path.parent.name == "checkpoints" and path.name.isdigit():
        stage_dir = path.parent.parent
    else:
        stage_dir = path
    if (stage_dir / UNFINISHED).exists():
        raise ValueError(f"{stage_dir}: its conversion has not ended; convert it once more")
    if not (stage_dir / "model.json").exists() or not path.is_dir():
        raise ValueError(
            f"{path}: no model here; expected a stage's folder of a run (with model.json and "
            "checkpoints/) or a Hugging Face directory (with config.json)"
        )
    if path.name.isdigit() and stage_dir != path:
        return stage_dir, int(path.name)
    steps = [
        int(step.name) for step in (stage_dir / "checkpoints").glob("*") if step.name.isdigit()
    ]
    if not steps:
        raise ValueError(f"{stage_dir}: no checkpoint is complete yet; let its training finish")
    return stage_dir, max(steps)
