"""A recipe's file: found by its path, read, its values overridden."""

import copy
import os
import pathlib
import runpy
import traceback
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from qalign_jax import mistakes

DEFAULT = "configs/demo.py"
# What absl and ml_collections raise over a recipe, its argument or an override.
MISTAKES = (AttributeError, KeyError, TypeError, ValueError, flags.Error)
_EXPECTED = {bool: "True or False", int: "a whole number", float: "a number"}


def find(path: str) -> str:
    """Finds a recipe file: as given, else among the recipes that the package ships.

    The text after the first `:` is the recipe's argument and is kept.

    Raises:
      ValueError: there is no such file.
    """
    name, colon, argument = path.partition(":")
    package = pathlib.Path(__file__).resolve().parents[1]
    for candidate in (pathlib.Path(name), package.parent / name, package / name):
        if candidate.is_file():
            return f"{candidate}{colon}{argument}"
    raise ValueError(f"--config={path}: there is no file {name}, here or among the recipes")


def arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides in the words of the command line."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def read(recipe: str | ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A recipe with keys changed ({"tuning.lr": 1e-5}), each checked as on the command line.

    Args:
      recipe: a file with its argument, as `find` takes it, or what its get_config returns; that is
        not changed.

    Raises:
      ValueError: a file or an argument that does not exist; all keys that do not exist or get a
        value of another type.
    """
    if not isinstance(recipe, str | ConfigDict):
        raise ValueError(
            f"config={recipe!r}; expected the file of a recipe, like {DEFAULT}, or what its "
            "get_config returns"
        )
    line = arguments(overrides)
    try:
        return _read(recipe, line)
    except MISTAKES as error:
        if os.environ.get("QALIGN_TRACEBACK"):
            raise
        found = [why for override in line if (why := wrong_override(recipe, override))]
        raise mistakes.Mistakes(found or [mistake(error)]) from None


def wrong_override(recipe: str | ConfigDict, override: str) -> str:
    """Why a recipe does not take an override (--config.key=value); "" where it does."""
    try:
        config = _read(recipe, [])
    except MISTAKES:
        return ""  # the mistake is the recipe's own
    try:
        _read(config, [override])
        return ""
    except (AttributeError, KeyError):
        return f"{override}: the recipe has no such key (see its file)"
    except MISTAKES as error:
        key = override.partition("=")[0].lstrip("-").removeprefix("config.")
        wanted = _EXPECTED.get(type(config_path.get_value(key, config)))
        return f"{override}; expected {wanted}" if wanted else mistake(error)


def _read(recipe: str | ConfigDict, line: list[str]) -> ConfigDict:
    values = flags.FlagValues()
    # copied with its references
    config = copy.deepcopy(recipe) if isinstance(recipe, ConfigDict) else _load(recipe)
    line = ["recipe", *line]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=line)
    values(line)
    return values.config


def _load(recipe: str) -> ConfigDict:
    path, colon, argument = find(recipe).partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(argument) if colon else get_config()


def mistake(error: Exception) -> str:
    """One line that says what is wrong, of an exception in MISTAKES."""
    if not isinstance(error, (AttributeError, KeyError)):
        # a recipe's own mistake comes wrapped in its traceback
        return str(error).strip().splitlines()[-1]
    frames = traceback.extract_tb(error.__traceback__)
    if places := [frame for frame in frames if frame.name == "get_config"]:
        where = f"{places[-1].filename}:{places[-1].lineno}"
        return f"{where}: the recipe raised {error!r}; QALIGN_TRACEBACK=1 shows where"
    asked = str(error.args[0]).splitlines() if error.args else [str(error)]
    return f"the recipe has no key {' '.join(asked)} to override (see its file)"
