r"""Converts a model from Hugging Face's format to this package's, or back, as the source says.

    python -m qalign_jax.convert --source=Llama-2-7b-hf --target=llama2-7b
    python -m qalign_jax.convert --source=runs/qalign/response_alignment --target=qalign-7b-hf \
        --dtype=bfloat16

A Hugging Face directory (config.json, safetensors, tokenizer) becomes a folder such as a stage of a
run leaves, and the other way round. Every command takes either, so a conversion is needed only to
merge a LoRA adapter, to read a large model faster, and to export.

A stage that trained an adapter leaves it merged into its base, or with `--peft` alone, as a
directory that PEFT reads.
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
from qalign_jax.checkpoints import hf_config, hf_weights, lora, part, safetensors
from qalign_jax.checkpoints.card import (
    UNFINISHED,
    base_of,
    read_card,
    stage_and_step,
    tokenizer_directory,
)
from qalign_jax.checkpoints.model import (
    STORED,
    Model,
    load_model,
    load_trained,
    save_model,
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
    r"adapter_model\.safetensors|adapter_config\.json|"
    r"\..+\.\d+"  # what files.write_bytes leaves when it is killed
)


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    dtype: str | None = None,
    adapter: str | os.PathLike | None = None,
    peft: bool = False,
    shard_bytes: int = 5 * 10**9,
    mesh: str = "fsdp:-1",
) -> dict:
    """Converts a model; returns {"source", "target", "parameters", "bytes", "dtype"}.

    This host's devices hold the model in between. Beside it the host needs two tensors, with an
    adapter four.

    A Hugging Face directory, with an adapter of PEFT's or without, becomes a stage's folder;
    anything else a Hugging Face directory.

    Args:
      source: a Hugging Face directory, a stage's folder, one of its checkpoints, or BASE+ADAPTER.
      target: a new folder, or that of an unfinished conversion.
      dtype: of the weights; by default as stored. It must be given where they are int8.
      adapter: an adapter to merge into the source, PEFT's or a stage's that was trained on it.
      peft: whether the stage's adapter is written alone, as PEFT reads it, in f32.
      shard_bytes: size of a safetensors file at most.
      mesh: how this host's devices hold the weights (parallel/mesh.py).

    Raises:
      ValueError: before any device is used: no model, a damaged one, a target that exists; no
        adapter, one of another base, or int8 weights without a dtype.
      StorageFailed: there is no space for the target; what was written of it is removed.
    """
    target = files.absolute(target)
    base, beside = _folders(source, adapter)
    for folder in filter(None, (base, beside)):
        if folder == target or folder in target.parents or target in folder.parents:
            raise ValueError(f"--target={target} and {folder} lie in each other")
    name = part.join(base, beside) if beside else os.fspath(base)
    _check_target(target)
    if (target / UNFINISHED).exists():
        with _held(target):
            pass  # now and not when the source is read, which takes long
    imports = hf_config.is_hf_directory(base) and (not beside or lora.is_adapter(beside))
    told = {"source": name, "target": os.fspath(target)}
    if peft:
        _check_leaves_adapter(name, beside or base, dtype)
        return told | _export_adapter(name, beside or base, target)
    if imports:
        sources, model = _read(base, beside, dtype, mesh)
        with _begun(target):
            save_model(target, model)
            write_record(target, Record({}, sources))
    else:
        from_int8 = _check_dtype(name, dtype)
        devices = make_mesh(mesh, jax.local_devices())
        model = load_model(name, mesh=devices, param_dtype=dtype or STORED)
        tokenizer_files = model.tokenizer.hugging_face_files()
        with _begun(target):
            _export(model, tokenizer_files, name, from_int8, target, shard_bytes)
    stored = _dtype(model)
    return told | {
        "parameters": model.config.num_parameters,
        "bytes": model.config.num_parameters * stored.itemsize,
        "dtype": stored.name,
    }


def _folders(source, adapter) -> tuple[epath.Path, epath.Path | None]:
    """The base and the adapter that are named, the adapter in `source` or by itself."""
    base, beside = part.split(source)
    if part.split(base)[1] or (beside and adapter):
        raise ValueError(
            f"--source={os.fspath(source)} names an adapter already, and one is merged at a time; "
            "convert it first, and merge the other one into that"
        )
    beside = beside or adapter
    return files.absolute(base), files.absolute(beside) if beside else None


def _check_leaves_adapter(name: str, folder: epath.Path, dtype: str | None) -> None:
    """Raises a ValueError unless a stage's adapter can be written by itself."""
    if lora.is_adapter(folder):
        raise ValueError(f"--peft: {folder} is an adapter as PEFT reads it already; copy it")
    own = None if hf_config.is_hf_directory(folder) else read_card(name).part
    if own is None or not own.trainable.adapter:
        held = own.trainable if own else "all of a model"
        raise ValueError(
            f"--peft: {folder} holds {held}, and no adapter; leave --peft out for the whole model, "
            "or name a stage that trained an adapter"
        )
    if dtype not in (None, "float32"):
        raise ValueError(f"--peft: adapters are written in float32, not in {dtype}; leave it out")


def _check_dtype(name: str, dtype: str | None) -> bool:
    """Whether the weights of a name come from int8 ones.

    Raises:
      ValueError: they do, and there is no dtype for them.
    """
    found, own = name, read_card(name).part
    alone = ", or --peft for the adapter alone" if own and own.trainable.adapter else ""
    while own and not own.trainable.int8:
        found = base_of(found)
        own = read_card(found).part
    if own and not dtype:
        raise ValueError(
            f"{name}: it was trained beside a base in int8, and int8 weights do not leave as if "
            "they were as precise as others. Give --dtype=bfloat16 for these weights dequantised, "
            f"which the model card will say{alone}"
        )
    return own is not None


def _read(source, adapter, dtype: DTypeLike | None, mesh: str) -> tuple[dict, Model]:
    """A Hugging Face directory, its adapter merged, and the fingerprints of both."""
    (config, execution, template, _), tensors = read_card(source), TensorFiles(source)
    tokenizer = load_tokenizer(source)
    sources = {"source": os.fspath(source), "weights": tensors.fingerprint()}
    if adapter:
        tensors = lora.MergedTensors(tensors, adapter)
        sources["adapter"] = os.fspath(adapter)
        sources["adapter_weights"] = tensors.adapter_fingerprint()
    dtype = dtype or hf_weights.stored_dtype(tensors)
    params = hf_weights.read_params(tensors, config, make_mesh(mesh, jax.local_devices()), dtype)
    return sources, Model(config, execution, params, tokenizer, template)


def _export(
    model: Model, tokenizer_files, source: str, from_int8: bool, target, shard_bytes: int
) -> None:
    """Writes all that `from_pretrained` reads; config.json behind it, so that half is no model."""
    config, tokenizer, dtype = model.config, model.tokenizer, _dtype(model)
    base, beside = part.split(source)
    merged = beside if beside and lora.is_adapter(beside) else ""
    stage_dir, step = stage_and_step(files.absolute(base if merged else beside or base))
    for name, content in tokenizer_files.items():
        files.write_bytes(target / name, content)
    card = model_card.text(
        stage_dir, step, config, target.name, dtype.name, model.template, merged=merged,
        from_int8=from_int8,
    )  # fmt: skip
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


def _export_adapter(name: str, folder: epath.Path, target: epath.Path) -> dict:
    """Writes a stage's adapter as PEFT reads it; adapter_config.json comes last but the sums."""
    card, base, (stage_dir, step) = read_card(name), base_of(name), stage_and_step(folder)
    assert card.part and card.part.trainable.adapter
    tokenizer_files = load_tokenizer(tokenizer_directory(folder)).hugging_face_files()
    pairs = load_trained(name, card, make_mesh("single", jax.local_devices()))
    readme = model_card.text(
        stage_dir, step, card.config, target.name, "float32", card.template, adapter_of=base,
        from_int8=card.part.trainable.int8,
    )  # fmt: skip
    with _begun(target):
        for file, content in tokenizer_files.items():
            files.write_bytes(target / file, content)
        files.write_text(target / "README.md", readme)
        size = lora.write(target, card.part.trainable.adapter, pairs, base)
        checksums.write_sums(target, besides=("README.md", UNFINISHED, _LOCK))
    return {"parameters": size // 4, "bytes": size, "dtype": "float32"}


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
        "A Hugging Face directory, a stage's folder of a run, one of its checkpoints, or "
        "BASE+ADAPTER.",
        required=True,
    )
    flags.DEFINE_string("target", None, "A new folder, local or gs://bucket/path.", required=True)
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16", "float16"], "Of the weights; by default as stored."
    )
    flags.DEFINE_string(
        "adapter", None, "A LoRA adapter to merge into the source: PEFT's directory, or a stage."
    )
    flags.DEFINE_bool(
        "peft", False, "Writes the adapter that a stage trained alone, as PEFT reads it."
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
        peft=flags.FLAGS.peft,
        shard_bytes=int(flags.FLAGS.shard_gb * 1e9),
        mesh=flags.FLAGS.mesh,
    )


if __name__ == "__main__":
    cli.main(_command, define_flags)
