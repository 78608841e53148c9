"""What the commands share: flags, one JSON object as the last line of stdout, exit statuses."""

import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from qalign_jax.parallel.barrier import MissingProcess

DEFAULT_RECIPE = "configs/demo.py"


def main(command: Callable[[list[str]], dict], define_flags: Callable[[], None]) -> None:
    """Runs `command` with the parsed flags and prints what it returns as one line of JSON.

    Flags are defined here and not on import, because the commands' functions are a library too.

    A user's mistake (ValueError, or a flag that does not parse) becomes one line on stderr and
    exit status 2; a loss that is not finite, or a process that is missing, one line and status 1.
    Every other exception keeps its traceback.
    """

    def guarded(argv: list[str]) -> None:
        handler = logging.get_absl_handler()
        handler.setFormatter(_Formatter())
        handler.addFilter(_is_logged)
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}; flags look like --name=value, see --help")
        try:
            result = command(argv)
        except ValueError as error:
            if os.environ.get("QALIGN_TRACEBACK"):
                raise
            _fail(str(error))
        except FloatingPointError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except MissingProcess as error:
            from qalign_jax.parallel import hosts  # imports JAX

            print(f"error: {error}", file=sys.stderr, flush=True)
            hosts.exit_after_grace(1)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
            os._exit(130)  # at once: threads in the background would print tracebacks
        print(json.dumps(result, ensure_ascii=False), flush=True)

    define_flags()
    app.run(guarded, flags_parser=_parse)


def define_recipe() -> None:
    """Defines --config, a recipe with overrides; its value is a ConfigDict."""
    config_flags.DEFINE_config_file(
        "config",
        None,  # _parse puts the default in, and reports a mistake in an override
        "The recipe, a file that returns a ConfigDict, with its argument after a colon: "
        "configs/math_cot.py:llama2_7b. Any value in it can be changed: "
        f"--config.response_alignment.lr=1e-5. By default {DEFAULT_RECIPE}.",
    )


def config_path(path: str) -> str:
    """Finds a recipe file: as given, else among the recipes that the package ships.

    The text after the first `:` is the recipe's argument and is kept.
    """
    name, colon, argument = path.partition(":")
    package = pathlib.Path(__file__).resolve().parent
    for candidate in (pathlib.Path(name), package.parent / name, package / name):
        if candidate.is_file():
            return f"{candidate}{colon}{argument}"
    raise ValueError(f"--config={path}: there is no file {name}, here or among the recipes")


def _is_logged(record) -> bool:
    """Libraries that log through absl too are logged from warnings upwards only."""
    return record.levelno > 20 or "qalign_jax" in record.pathname


class _Formatter(logging.PythonFormatter):
    """Time and text; the source position only for warnings and worse."""

    def format(self, record):
        if record.levelno > 20:
            return super().format(record)
        return f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()}"


def _parse(argv: list[str]) -> list[str]:
    if {"--help", "-help", "-h", "-?"} & set(argv):
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)
    try:
        if "config" in flags.FLAGS:
            argv = _with_recipe(argv)
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        if os.environ.get("QALIGN_TRACEBACK"):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        if places := [frame for frame in frames if frame.name == "get_config"]:
            where = f"{places[-1].filename}:{places[-1].lineno}"
            _fail(f"{where}: the recipe raised {error!r}; QALIGN_TRACEBACK=1 shows where")
        asked = str(error.args[0]).splitlines() if error.args else [str(error)]
        _fail(f"the recipe has no key {' '.join(asked)} to override (see its file)")
    except (flags.Error, TypeError, ValueError) as error:
        if os.environ.get("QALIGN_TRACEBACK"):
            raise
        # a recipe's own mistake comes wrapped in its traceback
        _fail(f"{str(error).strip().splitlines()[-1]} (see --help)")


def _with_recipe(argv: list[str]) -> list[str]:
    """Finds the file of --config, or adds the default one in front of its overrides."""
    argv = list(argv)
    for index, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            if equals:
                argv[index] = f"--config={config_path(value)}"
            elif index + 1 < len(argv):
                argv[index + 1] = config_path(argv[index + 1])
            return argv
    return [argv[0], f"--config={config_path(DEFAULT_RECIPE)}", *argv[1:]]


def _fail(message: str) -> NoReturn:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    print(f"error: {' '.join(lines)}", file=sys.stderr, flush=True)
    sys.exit(2)
