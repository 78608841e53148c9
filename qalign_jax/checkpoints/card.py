"""What a folder with a model says of it, apart from its weights: architecture, tokenizer, base."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from qalign_jax import files, schema
from qalign_jax.checkpoints import hf_config, lora, part
from qalign_jax.checkpoints.part import Part
from qalign_jax.checkpoints.safetensors import TensorFiles
from qalign_jax.data import prompts
from qalign_jax.data.tokenizer import Tokenizer
from qalign_jax.faults import checksums
from qalign_jax.models.config import Execution, LlamaConfig, RopeScaling
from qalign_jax.models.trainable import Trainable

_CARD = {
    "model": {"rope_scaling": schema.Maybe({...: schema.ANYTHING})},
    "template": schema.TEXT,
    "part?": schema.Maybe({...: schema.ANYTHING}),
}
UNFINISHED = "conversion.unfinished"  # a file in a folder that a conversion still writes


class Card(NamedTuple):
    """model.json: all of a model but its weights and its tokenizer."""

    config: LlamaConfig
    execution: Execution
    template: str
    part: Part | None = None  # what of it is in the folder, where that is not all


def describe_model(stage_dir, card: Card, tokenizer: Tokenizer) -> None:
    """Writes what is needed beside the weights: model.json, the tokenizer, SHA256SUMS of both."""
    stage_dir = epath.Path(stage_dir)
    model = dataclasses.asdict(card.config) | dataclasses.asdict(card.execution)
    own = {"part": card.part.to_json()} if card.part else {}
    files.write_json(stage_dir / "model.json", {"model": model, "template": card.template} | own)
    tokenizer.save(stage_dir / "tokenizer")
    others = {path.name for path in stage_dir.iterdir()} - {"model.json", "tokenizer"}
    checksums.write_sums(stage_dir, besides=others)


def read_card(path) -> Card:
    """All but weights and tokenizer of a directory that `load_model` takes.

    Raises:
      ValueError: there is no model, or a value of it is none that a model has.
    """
    base, adapter = part.split(path)
    if adapter and part.split(base)[1]:
        raise ValueError(
            f"{os.fspath(path)} names two adapters; expected BASE{part.SEPARATOR}ADAPTER. Merge "
            "one first: python -m qalign_jax.convert --source=BASE --adapter=DIR --target=DIR"
        )
    if adapter:
        return _card_of_both(base, files.absolute(adapter))
    path = files.absolute(path)
    if hf_config.is_hf_directory(path):
        return Card(hf_config.read_config(path), Execution(), hf_config.read_template(path))
    return card_of(stage_and_step(path)[0])


def card_of(stage_dir) -> Card:
    """model.json of a stage's folder, with checkpoints or without.

    Raises:
      ValueError: as `read_card`.
    """
    file = epath.Path(stage_dir) / "model.json"
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
        own = None if card.get("part") is None else Part.of_json(card["part"], "part")
        return Card(_made(LlamaConfig, model), execution, card["template"], own)
    except ValueError as error:
        raise ValueError(f"{file}: not a model's ({error}); {remedy}") from None


def _card_of_both(base: str, adapter: epath.Path) -> Card:
    """The card of BASE+ADAPTER."""
    card = read_card(base)
    if not lora.is_adapter(adapter):
        own = read_card(adapter) if adapter.exists() else None
        if own is None or own.part is None or not own.part.trainable.adapter:
            raise ValueError(f"{adapter}: no adapter here; expected one of PEFT's or a stage's")
        # Hugging Face directories have no init_scale
        if dataclasses.replace(own.config, init_scale=card.config.init_scale) != card.config:
            raise ValueError(
                f"{adapter} is an adapter of a model of another shape than {base}; name the base "
                "that it was trained on"
            )
        return own
    trainable = Trainable(lora.read_adapter(adapter), dtype=card.execution.dtype)
    return card._replace(part=Part(trainable, base, fingerprint(base)))


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    """The dataclass of a kind from its fields in model.json."""
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{kind.__name__} has no key {unknown[0]!r}")
    needed = [name for name, default in known.items() if default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{kind.__name__} needs the key {missing[0]!r}")
    return kind(**values)


def base_of(name) -> str:
    """The directory of the base of BASE+ADAPTER, or of a folder with a part.

    Raises:
      ValueError: there is none, or it is not the one that the part was trained on.
    """
    base, adapter = part.split(name)
    folder = files.absolute(adapter or base)
    recorded = None if lora.is_adapter(folder) else read_card(folder).part
    if recorded is None:
        if not adapter or not lora.is_adapter(folder):
            raise ValueError(f"{folder}: no adapter here; expected one of PEFT's or a stage's")
        return base
    given = base if adapter else recorded.base_from(stage_and_step(folder)[0])
    remedy = f"name its base as BASE{part.SEPARATOR}{folder}"
    if not all(epath.Path(each).exists() for each in part.split(given) if each):
        raise ValueError(f"{folder}: its base {given} is not there; {remedy}")
    if (found := fingerprint(given)) != recorded.base_fingerprint:
        raise ValueError(
            f"{folder} was trained on a base with the fingerprint {recorded.base_fingerprint}; "
            f"{given} has {found}, and is another model. Name the base that it was trained on"
        )
    return given


def check_model(name) -> None:
    """Reads descriptions and no weights.

    Raises:
      ValueError: there is no model of that name, or it is an adapter of another base.
    """
    found = read_card(name).part
    if found is None:
        return
    base = base_of(name)
    folder = files.absolute(part.split(name)[1] or name)
    if found.trainable.adapter and lora.is_adapter(folder):
        lora.check_pairs(folder, read_card(base).config, found.trainable.adapter)


def part_in(folder) -> Trainable | None:
    """What a folder holds of a model, PEFT's adapter or a stage's part; None of a whole model.

    Raises:
      ValueError: there is no model.
    """
    if lora.is_adapter(folder):
        return Trainable(lora.read_adapter(folder))
    own = read_card(folder).part
    return own and own.trainable


def is_same_folder(one, other) -> bool:
    """Whether two names are of one folder, by links too."""
    one, other = (os.fspath(files.absolute(each)) for each in (one, other))
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def tokenizer_directory(path) -> epath.Path:
    """Where a directory that `load_model` takes keeps its tokenizer, if it has one."""
    path = files.absolute(part.split(path)[0])
    return path if hf_config.is_hf_directory(path) else stage_and_step(path)[0] / "tokenizer"


def fingerprint(path) -> str:
    """16 hexadecimal digits that change with the weights of a directory that `load_model` takes.

    They come from the values in a Hugging Face directory. In a stage's folder they come from
    stage.json, the settings and sources that determine its weights, and from the step.

    Raises:
      ValueError: there is no model.
    """
    base, adapter = part.split(path)
    if adapter:
        own = lora.fingerprint if lora.is_adapter(adapter) else fingerprint
        return hashlib.sha256(f"{fingerprint(base)} {own(adapter)}".encode()).hexdigest()[:16]
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
            f"{path} is a LoRA adapter; name it behind its base, as BASE{part.SEPARATOR}{path}, or "
            f"merge it: python -m qalign_jax.convert --source=BASE --adapter={path} --target=DIR"
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
