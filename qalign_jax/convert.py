r"""Converts a model from Hugging Face's format to this package's, or back, as the source says.

    python -m qalign_jax.convert --source=Llama-2-7b-hf --target=llama2-7b
    python -m qalign_jax.convert --source=runs/qalign/response_alignment --target=qalign-7b-hf \
        --dtype=bfloat16

A Hugging Face directory (config.json, safetensors, tokenizer) becomes a folder such as a stage of a
run leaves, and the other way round. Every command takes either, so a conversion is needed only to
merge a LoRA adapter, to read a large model faster, and to export.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.typing import DTypeLike

from qalign_jax import cli, files
from qalign_jax.checkpoints import hf_config, hf_weights, lora, safetensors
from qalign_jax.checkpoints.model import (
    STORED,
    UNFINISHED,
    Model,
    load_model,
    read_card,
    save_model,
    stage_and_step,
)
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.checkpoints.safetensors import TensorFiles
from qalign_jax.data.tokenizer import load_tokenizer
from qalign_jax.faults import checksums, lock, storage
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.reporting import model_card

_LOCK = "conversion.lock"
_WRITTEN = re.compile(
    rf"{UNFINISHED}|model.*\.safetensors|model\.safetensors\.index\.json|(generation_)?config\.json|"
    r"tokenizer.*|special_tokens_map\.json|README\.md|model\.json|stage\.json|checkpoints|SHA256SUMS|"
    r"\..+\.\d+"  # what files.write_bytes leaves when it is killed
)


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    dtype: str | None = None,
    adapter: str | os.PathLike | None = None,
    shard_bytes: int = 5 * 10**9,
    mesh: str = "fsdp:-1",
) -> dict:
    """Converts a model; returns {"source", "target", "parameters", "bytes", "dtype"}.

    This host's devices hold the model in between. Beside it the host needs two tensors, with an
    adapter four.

    Args:
      source: a Hugging Face directory, a stage's folder, or one of its checkpoints.
      target: a new folder, or that of an unfinished conversion.
      dtype: of the weights; by default as stored.
      adapter: a PEFT LoRA adapter to merge, for a Hugging Face source.
      shard_bytes: size of a safetensors file at most.
      mesh: how this host's devices hold the weights (parallel/mesh.py).

    Raises:
      ValueError: before any device is used: no model, a damaged one, or a target that exists.
      StorageFailed: there is no space for the target; what was written of it is removed.
    """
    source, target = files.absolute(source), files.absolute(target)
    if source == target or source in target.parents or target in source.parents:
        raise ValueError(f"--target={target} and --source={source} lie in each other")
    _check_target(target)
    if (target / UNFINISHED).exists():
        with _held(target):
            pass  # now and not when the source is read, which takes long
    imports = hf_config.is_hf_directory(source)
    if adapter and not imports:
        raise ValueError(f"--adapter: {source} is no Hugging Face directory to merge it into")
    if imports:
        sources, model = _read(source, adapter and files.absolute(adapter), dtype, mesh)
        with _begun(target):
            save_model(target, model)
            write_record(target, Record({}, sources))
    else:
        devices = make_mesh(mesh, jax.local_devices())
        model = load_model(source, mesh=devices, param_dtype=dtype or STORED)
        tokenizer_files = model.tokenizer.hugging_face_files()
        with _begun(target):
            _export(model, tokenizer_files, stage_and_step(source), target, shard_bytes)
    stored = _dtype(model)
    return {
        "source": os.fspath(source),
        "target": os.fspath(target),
        "parameters": model.config.num_parameters,
        "bytes": model.config.num_parameters * stored.itemsize,
        "dtype": stored.name,
    }


def _read(source, adapter, dtype: DTypeLike | None, mesh: str) -> tuple[dict, Model]:
    """A Hugging Face directory, its adapter merged, and the fingerprints of both."""
    (config, execution, template), tensors = read_card(source), TensorFiles(source)
    tokenizer = load_tokenizer(source)
    sources = {"source": os.fspath(source), "weights": tensors.fingerprint()}
    if adapter:
        tensors = lora.MergedTensors(tensors, adapter)
        sources["adapter"] = os.fspath(adapter)
        sources["adapter_weights"] = tensors.adapter_fingerprint()
    dtype = dtype or hf_weights.stored_dtype(tensors)
    params = hf_weights.read_params(tensors, config, make_mesh(mesh, jax.local_devices()), dtype)
    return sources, Model(config, execution, params, tokenizer, template)


def _export(model: Model, tokenizer_files, trained, target, shard_bytes: int) -> None:
    """Writes all that `from_pretrained` reads; config.json behind it, so that half is no model."""
    config, tokenizer, dtype = model.config, model.tokenizer, _dtype(model)
    stage_dir, step = trained
    for name, content in tokenizer_files.items():
        files.write_bytes(target / name, content)
    card = model_card.text(stage_dir, step, config, target.name, dtype.name, model.template)
    files.write_text(target / "README.md", card)
    shapes = hf_weights.tensor_shapes(config)
    tensors = hf_weights.tensors_of(model.params, config)
    safetensors.write_files(target, tensors, shapes, dtype, shard_bytes)
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    files.write_json(target / "generation_config.json", {"do_sample": False} | ends, indent=2)
    content = hf_config.config_json(config, dtype, tokenizer, model.template)
    files.write_json(target / "config.json", content, indent=2)
    # the model card is to be edited
    checksums.write_sums(target, besides=("README.md", UNFINISHED, _LOCK))


def _dtype(model: Model) -> np.dtype:
    return np.dtype(jax.tree.leaves(model.params)[0].dtype)


def _check_target(target: epath.Path) -> None:
    """Raises a ValueError unless the target is free, or that of an unfinished conversion."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"--target={target} is there already; name another folder")
    names = {path.name for path in target.iterdir()} if target.exists() else set()
    if names - {_LOCK} and UNFINISHED not in names:
        raise ValueError(f"--target={target} is there already; name another folder")
    if strange := sorted(name for name in names - {_LOCK} if not _WRITTEN.fullmatch(name)):
        raise ValueError(
            f"--target={target} is an unfinished conversion that holds {strange[0]!r}, which no "
            "conversion writes; name another folder"
        )


def _held(target: epath.Path) -> contextlib.AbstractContextManager[None]:
    return lock.hold(target / _LOCK, "name another folder, or wait for that conversion to end")


@contextlib.contextmanager
def _begun(target: epath.Path) -> Iterator[None]:
    """Marks the target as unfinished while the context is open, and for good where it fails."""
    with storage.writing(target), _held(target):
        _check_target(target)  # again: nobody else can write there from now on
        (target / UNFINISHED).touch()
        _clear(target)
        try:
            with storage.writing(target):
                yield
        except storage.StorageFailed:
            # threads of Orbax may still write: the mark lets the same command go on even then
            with contextlib.suppress(OSError):
                _clear(target)
            raise
        (target / UNFINISHED).unlink(missing_ok=True)


def _clear(target: epath.Path) -> None:
    """Removes what an unfinished conversion has written."""
    for path in target.iterdir():
        if path.name not in (_LOCK, UNFINISHED):
            path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


def define_flags() -> None:
    flags.DEFINE_string(
        "source",
        None,
        "A Hugging Face directory, a stage's folder of a run, or one of its checkpoints.",
        required=True,
    )
    flags.DEFINE_string("target", None, "A new folder, local or gs://bucket/path.", required=True)
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16", "float16"], "Of the weights; by default as stored."
    )
    flags.DEFINE_string(
        "adapter", None, "A PEFT LoRA adapter's directory, merged into a Hugging Face source."
    )
    flags.DEFINE_float(
        "shard_gb", 5.0, "Size of a safetensors file at most, in 10^9 bytes.", lower_bound=1e-6
    )
    flags.DEFINE_string(
        "mesh",
        "fsdp:-1",
        "How this host's devices hold the model in between; 'single' is one device.",
    )


def _command(_) -> dict:
    if not math.isfinite(flags.FLAGS.shard_gb):
        raise ValueError(f"--shard_gb={flags.FLAGS.shard_gb}: expected a size")
    return convert(
        flags.FLAGS.source,
        flags.FLAGS.target,
        dtype=flags.FLAGS.dtype,
        adapter=flags.FLAGS.adapter,
        shard_bytes=int(flags.FLAGS.shard_gb * 1e9),
        mesh=flags.FLAGS.mesh,
    )


if __name__ == "__main__":
    cli.main(_command, define_flags)
