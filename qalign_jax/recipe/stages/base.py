"""The protocol of stages: a stage is a frozen dataclass, made from its part of the recipe.

A kind of stage is one module whose `STAGE` is a subclass of `Stage`: a module of this folder by its
name (`kind="train"`), any other by its dotted one (`kind="my_package.my_stage"`).
"""

import abc
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from etils import epath
from ml_collections import ConfigDict

from qalign_jax import settings as settings_of
from qalign_jax.ahead.jobs import Job, Workload
from qalign_jax.recipe.weights import RANDOM, Resolver, Source
from qalign_jax.recipe.workdir import Workdir
from qalign_jax.training.profile import Profile


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

    def check(self) -> None:  # noqa: B027  # most values need no check
        """Raises a ValueError where the stage's own values make no sense."""

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
          ValueError: a key that is missing or unknown, or values that make no sense.
        """
        own = dict(recipe[name])
        kind, known = own.pop("kind"), set(cls.keys())
        required = {
            field.name
            for field in dataclasses.fields(cls)
            if field.default is field.default_factory is dataclasses.MISSING
        }
        if wrong := sorted(set(own) - known) or sorted(required & known - set(own)):
            what = "has no key" if wrong[0] in own else "is missing the key"
            raise ValueError(f"{name}: a stage of kind {kind!r} {what} {wrong[0]!r}")
        for key in ("template", "mesh"):
            own[key] = own.get(key) or recipe[key]
        stage = cls(kind=kind, name=name, seed=recipe["seed"], tokenizer=recipe["tokenizer"], **own)
        stage.check()
        return stage


def read_stages(config: ConfigDict) -> dict[str, Stage]:
    """The stages of a recipe by name, in order.

    Raises:
      ValueError: a stage that is not described or makes no sense, or one that reads from another
        that does not come before it.
    """
    recipe = config.to_dict()
    stages: dict[str, Stage] = {}
    described = {
        name: part for name, part in recipe.items() if isinstance(part, Mapping) and "kind" in part
    }
    for name in recipe["stages"]:
        if not isinstance(name, str) or not name.isidentifier() or name == RANDOM:
            raise ValueError(
                f"a stage cannot be named {name!r}: its name is a folder and a flag, like tuning_2"
            )
        if name in stages:
            raise ValueError(f"stages={recipe['stages']} names {name!r} twice")
        if name not in described:
            known = ", ".join(described) or "none"
            raise ValueError(f"no stage {name!r} is described in the recipe, only {known}")
        try:
            kind = stage_class(str(described[name]["kind"]))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        stages[name] = kind.from_recipe(name, recipe)
    later = list(stages)
    for stage in stages.values():
        for source in stage.sources():
            if source.name in later:
                raise ValueError(f"{stage.name} needs {source.name}, which does not come before it")
        later.remove(stage.name)
    return stages


def choose(stages: Mapping[str, Stage], only: Sequence[str]) -> list[Stage]:
    """The stages with these names, in the recipe's order; all of them where none is named.

    Raises:
      ValueError: a name that is no stage's.
    """
    for name in only:
        if name not in stages:
            raise ValueError(f"no stage {name!r}; the recipe's stages are {', '.join(stages)}")
    return [stage for stage in stages.values() if not only or stage.name in only]


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
