"""A trained part of a model at rest: an adapter, or matrices of some layers, of one base.

A stage that trains a part leaves that alone in its checkpoints; model.json says what it is and
which base has the rest. `BASE+ADAPTER` names a base and an adapter for it, one of PEFT's or a
stage's, where a model is named.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from qalign_jax import files, schema
from qalign_jax.checkpoints import integrity
from qalign_jax.faults.checksums import Damaged
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.trainable import Trainable, trained_shapes
from qalign_jax.parallel.mesh import abstract_on

SEPARATOR = "+"
_PART = {
    "base": schema.TEXT,
    "base_fingerprint": schema.TEXT,
    "adapter": schema.Maybe({"rank": schema.ANYTHING, "matrices": [schema.TEXT]}),
    "layers": schema.Maybe((schema.whole(), schema.whole())),
    "matrices": [schema.TEXT],
    "dtype": schema.one_of("float32", "bfloat16", "float16"),
    "int8": schema.FLAG,
}


@dataclasses.dataclass(frozen=True)
class Part:
    """What of a model is in a folder, and where the rest is."""

    trainable: Trainable
    base: str  # a directory, absolute or relative to the folder
    base_fingerprint: str

    def base_from(self, folder) -> str:
        """The base's directory, or its name as BASE+ADAPTER."""
        return join(*(_from(folder, name) for name in split(self.base) if name))

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self.trainable)
        return values | {"base": self.base, "base_fingerprint": self.base_fingerprint}

    @classmethod
    def of_json(cls, values: Mapping[str, Any], where: str) -> "Part":
        """The inverse of `to_json`.

        Raises:
          ValueError: a key that there is not, or a value that none has.
        """
        schema.check(values, _PART, where)
        own, adapter = dict(values), values["adapter"]
        base = own.pop("base"), own.pop("base_fingerprint")
        own["matrices"] = tuple(own["matrices"])
        own["layers"] = own["layers"] and tuple(own["layers"])
        _check_keys(Trainable, own, where)
        if adapter:
            _check_keys(Adapter, adapter, where)
            own["adapter"] = Adapter(**{**adapter, "matrices": tuple(adapter["matrices"])})
        return cls(Trainable(**own), *base)


def _check_keys(kind: type, values: Mapping[str, Any], where: str) -> None:
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{where}: {kind.__name__} has no key {unknown[0][:80]!r}")


def split(name: str | os.PathLike) -> tuple[str, str]:
    """BASE and ADAPTER of a name `BASE+ADAPTER`; the name and "" where it is one directory's.

    Where directories have a plus in their names, it is the one before an adapter that exists,
    behind a base that does.
    """
    text = os.fspath(name)
    if SEPARATOR not in text or epath.Path(text).exists():
        return text, ""
    places = [place for place, letter in enumerate(text) if letter == SEPARATOR]
    pairs = [(text[:place], text[place + 1 :]) for place in reversed(places)]
    pairs = [pair for pair in pairs if all(pair)]
    # a stage's name in a recipe is no path that exists
    pairs.sort(key=lambda pair: [not epath.Path(each).exists() for each in reversed(pair)])
    return pairs[0] if pairs else (text, "")


def join(base: str | os.PathLike, *adapter: str | os.PathLike) -> str:
    """The name of a base with an adapter, or of one directory; the inverse of `split`."""
    return SEPARATOR.join(os.fspath(each) for each in (base, *adapter))


def _from(folder, name: str) -> str:
    """A directory whose name is absolute or relative to a folder."""
    if files.is_remote(name) or os.path.isabs(name):
        return name
    path = os.fspath(files.absolute(folder) / name)
    return path if files.is_remote(path) else os.path.normpath(path)


def abstract_part(config: LlamaConfig, trainable: Trainable, mesh: Mesh):
    """What is trained as ShapeDtypeStructs with shardings."""
    return abstract_on(mesh, *trained_shapes(config, trainable))


def load_part(step_dir: epath.Path, config: LlamaConfig, trainable: Trainable, mesh: Mesh):
    """The trained part of a checkpoint, f32, on a mesh.

    Raises:
      Damaged: it is not as it was saved, or not of this model and this part.
    """
    wanted = abstract_part(config, trainable, mesh)
    stored = integrity.stored_params(step_dir)
    if found := _difference(stored, wanted):
        raise Damaged(f"{step_dir} is damaged, or not of the part in model.json ({found})")
    return integrity.load(step_dir, {"params": wanted})["params"]


def _difference(stored, wanted) -> str:
    own, others = _shapes(stored), _shapes(wanted)
    for name in sorted(own.keys() | others.keys()):
        if own.get(name) != others.get(name):
            return f"{name} has shape {own.get(name)}, and {others.get(name)} there"
    return ""


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
