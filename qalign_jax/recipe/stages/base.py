"""The protocol of stages: a stage is a frozen dataclass, made from its part of the recipe.

A kind of stage is one module whose `STAGE` is a subclass of `Stage`: a module of this folder by its
name (`kind="train"`), any other by its dotted one (`kind="my_package.my_stage"`).
"""

import abc
import dataclasses
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from etils import epath
from ml_collections import ConfigDict

from qalign_jax import credentials, files, mistakes
from qalign_jax import settings as settings_of
from qalign_jax.ahead.jobs import Job, Workload
from qalign_jax.checkpoints import part
from qalign_jax.data import prompts
from qalign_jax.models.trainable import Trainable
from qalign_jax.parallel.mesh import mesh_sizes
from qalign_jax.recipe.weights import RANDOM, Resolver, Source
from qalign_jax.recipe.workdir import Workdir
from qalign_jax.training.profile import Profile

# The keys that every recipe has, with their types.
SHARED: Mapping[str, Any] = {
    "name": str, "stages": Sequence[str], "seed": int, "template": str, "tokenizer": str,
    "mesh": str, "cache_dir": str, "notes": Sequence[str],
}  # fmt: skip
_URL = re.compile(r"\w+://")
# What raises on a wrong value of a recipe, or of a stage that has its own.
_CHECKS = {"template": prompts.template_text, "mesh": mesh_sizes}


@dataclasses.dataclass(frozen=True)
class Run:
    """The context of one run, shared by its stages."""

    workdir: Workdir
    weights: Resolver
    cache_dir: epath.Path  # data sets and packed tokens, on each host
    profile: Profile | None = None  # of every training stage

    @property
    def data_dir(self) -> epath.Path:
        return self.cache_dir / "datasets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(abc.ABC):
    """A stage of a recipe: these keys come from the recipe, those of a subclass from the stage's
    own part of it. `template` and `mesh` are the stage's own where it has them.
    """

    kind: str
    name: str
    seed: int
    template: str
    mesh: str
    tokenizer: str

    # Keys that may differ between two starts of one run: how it is computed, not what. Data may
    # move: the fingerprint of its content is compared instead.
    FREE: ClassVar[frozenset[str]] = frozenset({"path", "mesh"})
    # Before the first stage that uses devices, the data of all of them is read.
    USES_DEVICES: ClassVar[bool] = True

    @property
    def starts_from(self) -> Source | None:
        """The weights that the stage starts from, if it leaves weights."""
        return None

    @property
    def leaves_part(self) -> Trainable | None:
        """What it trains, where that is not all weights."""
        return None

    @property
    def keeps_base(self) -> bool:
        """Whether its base is that of the adapter that it starts from, if it starts from one."""
        return False

    def check(self) -> None:  # noqa: B027  # most values need no check
        """Raises a ValueError where the stage's own values make no sense, all of them together.

        They have the types of their fields.
        """

    def check_inputs(self, run: Run) -> None:  # noqa: B027  # some stages read other stages only
        """Raises a ValueError for data and models that no stage makes and that cannot be used."""

    def sources(self) -> list[Source]:
        """The weights, stages and files that the stage reads, data sets excepted."""
        return []

    def settings(self) -> dict[str, Any]:
        """All that shapes the stage's outputs, in JSON's types."""
        own = {key: getattr(self, key) for key in sorted([*self.keys(), "kind"])}
        shared = {"seed": self.seed, "template": self.template}
        return settings_of.as_json(_without(own, self.FREE) | shared)

    def prepare(self, run: Run) -> dict[str, Any] | None:
        """Reads and builds data, and checks the sources against it, without a device.

        Returns:
          statistics of the data, if the stage has some.
        """
        return None

    def jobs(self, run: Run, workload: Workload) -> dict[str, Job]:
        """The programs of the stage by name, for `fits` to compile and for `run` to check."""
        return {}

    @abc.abstractmethod
    def run(self, run: Run) -> dict[str, Any]:
        """Does the work, or resumes it; returns a summary for done.json."""

    @classmethod
    def keys(cls) -> list[str]:
        """The keys of the stage's own part of a recipe, `kind` left out."""
        kinds = cls.__mro__[: cls.__mro__.index(Stage)]
        own = {name for kind in kinds for name in inspect.get_annotations(kind)}
        return [field.name for field in dataclasses.fields(cls) if field.name in own]

    @classmethod
    def from_recipe(cls, name: str, recipe: Mapping[str, Any]) -> Self:
        """The stage of this name in a recipe, given as a plain dict.

        Raises:
          ValueError: keys that are missing or unknown, and values that make no sense, together.
        """
        own = {key: value for key, value in recipe[name].items() if key != "kind"}
        kind, known = recipe[name]["kind"], cls.keys()
        defaults = {field.name for field in dataclasses.fields(cls) if _has_default(field)}
        lacking = [key for key in known if key not in own and key not in defaults]
        found = _wrong_paths(own, name)
        found += [f"{name}.{key}: a stage of kind {kind!r} has no such key"
                  for key in own if key not in known]  # fmt: skip
        found += [f"{name}.{key}: a stage of kind {kind!r} needs this key" for key in lacking]
        hints, sound = typing.get_type_hints(cls), {}
        for key in known:
            if key in own:
                wrong = mistakes.wrong_types(f"{name}.", {key: own[key]}, hints)
                found += wrong
                sound |= {} if wrong else {key: own[key]}
        if not set(known) - defaults <= sound.keys():
            raise mistakes.Mistakes(found)
        # the sound values are checked with defaults in the place of the others
        for key, check in _CHECKS.items():
            if sound.get(key):
                found += mistakes.of(f"{name}.{key}: ", check, sound[key])
            else:
                sound[key] = recipe[key]
        shared = {key: recipe[key] for key in ("seed", "tokenizer")}
        stage = cls(kind=kind, name=name, **shared, **sound)
        mistakes.refuse(found + mistakes.of("", stage.check))
        return stage


def _has_default(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def read_stages(config: ConfigDict) -> dict[str, Stage]:
    """The stages of a recipe by name, in order.

    Raises:
      ValueError: stages that are not described or make no sense, or that read from another that
        does not come before them; all of it together.
    """
    stages, found = find_stages(config)
    mistakes.refuse(found)
    return stages


def find_stages(config: ConfigDict) -> tuple[dict[str, Stage], list[str]]:
    """The stages of a recipe that make sense, and what is wrong with the recipe and the others."""
    recipe, stages = {"notes": (), **config.to_dict()}, {}
    given = {key: recipe.get(key) for key in SHARED}
    if found := mistakes.wrong_types("", given, SHARED):
        return {}, found
    parts = {key: part for key, part in recipe.items() if isinstance(part, Mapping)}
    own = {key: value for key, value in recipe.items() if key not in {"notes", *parts}}
    unusable = _wrong_paths(own)
    if "://" in recipe["cache_dir"] and not unusable:
        unusable.append(f"cache_dir={recipe['cache_dir']!r}; expected a local folder")
    found += unusable
    found += mistakes.out_of_range("", given, {"seed": (0, mistakes.LARGEST)})
    for key, check in _CHECKS.items():
        found += mistakes.of(f"{key}: ", check, recipe[key])
    described = [key for key, part in parts.items() if "kind" in part]
    for place, name in enumerate(recipe["stages"]):
        if not files.is_name(name) or not name.isidentifier() or name == RANDOM:
            found.append(
                f"stages: a stage cannot be named {name!r}: its name is a folder and a flag, like "
                "tuning_2"
            )
        elif name in recipe["stages"][:place]:
            found.append(f"stages={recipe['stages']} names {name!r} twice")
        elif name not in described:
            known = ", ".join(described) or "none"
            found.append(f"stages: no stage {name!r} is described in the recipe, only {known}")
        elif wrong := mistakes.of(f"{name}.", stage_class, str(parts[name]["kind"])):
            found += wrong
        else:
            kind = stage_class(str(parts[name]["kind"]))
            try:
                stages[name] = kind.from_recipe(name, recipe)
            except ValueError as error:
                found += mistakes.lines_of(error)
    found += _disorder(stages, recipe["stages"])
    return ({} if unusable else stages), found


def _texts(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a recipe, templates left out, with their keys, as `a.b.c`."""
    if path.endswith("template"):
        return
    if isinstance(tree, str):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value, path)


def _wrong_paths(tree: Mapping[str, Any], path: str = "") -> list[str]:
    return [
        line for key, text in _texts(tree, path) for line in mistakes.of("", check_path, key, text)
    ]


def check_path(key: str, text: str) -> None:
    """Raises a ValueError for a text with a password or a token in it, or of a URL that can be no
    path.
    """
    if credentials.are_in(key, text):
        raise ValueError(
            f"{key}: holds a password or a token, and a run writes its recipe down; give it to the "
            "process by an environment variable or a file that its library reads"
        )
    if _URL.match(text):
        try:
            epath.Path(text)
        except KeyError:
            raise ValueError(
                f"{key}={text!r}: no path; files are local or in a bucket, gs://bucket/path"
            ) from None


def _disorder(stages: Mapping[str, Stage], order: Sequence[str]) -> list[str]:
    """The lines for stages that read from one that does not come before them."""
    return [
        f"{key_of(stage, source.name)}={source.name!r}: {stage.name} needs {source.name}, which "
        "does not come before it"
        for stage in stages.values()
        for sources in stage.sources()
        for source in sources.each()
        if source.name in order[order.index(stage.name) :]
    ]


def key_of(stage: Stage, value: str) -> str:
    """The key of a recipe in which a stage has this value: `evaluation.systems.base.model`."""

    def keys(tree: Any, path: str) -> Iterator[str]:
        if isinstance(tree, Mapping):
            for key, each in tree.items():
                yield from keys(each, f"{path}.{key}")
        elif tree == value or (value and isinstance(tree, str) and value in part.split(tree)):
            yield path

    own = {key: getattr(stage, key) for key in stage.keys()}
    return next(keys(own, stage.name), "tokenizer")


def make_run(
    config: ConfigDict, stages: Mapping[str, Stage], workdir, profile: Profile | None = None
) -> Run:
    """The Run of a recipe's stages in a workdir."""
    recipe, folder = config.to_dict(), Workdir(workdir)
    shared = (recipe["tokenizer"], recipe["template"], recipe["seed"])
    cache_dir = epath.Path(recipe["cache_dir"]).expanduser()
    return Run(folder, Resolver(stages, folder.path, *shared), cache_dir, profile)


def stage_class(kind: str) -> type[Stage]:
    """The class of a kind of stage.

    Raises:
      ValueError: no module of this name, or one without STAGE.
    """
    package = __name__.rpartition(".")[0]
    path = kind if "." in kind else f"{package}.{kind}"
    found = None
    try:
        if all(part.isidentifier() for part in kind.split(".")):
            found = getattr(importlib.import_module(path), "STAGE", None)
    except ModuleNotFoundError as error:
        if not f"{path}.".startswith(f"{error.name}."):
            raise  # a module that the stage itself imports
    if found is None:
        folder = importlib.import_module(package).__path__
        kinds = sorted(module.name for module in pkgutil.iter_modules(folder))
        kinds.remove("base")
        raise ValueError(
            f"kind={kind!r}; it is one of {', '.join(kinds)}, or a module of your own on Python's "
            "path with a STAGE, like my_package.my_stage"
        )
    return found


def _without(tree, keys):
    if not isinstance(tree, Mapping):
        return tree
    return {key: _without(value, keys) for key, value in tree.items() if key not in keys}
