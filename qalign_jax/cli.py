"""What the commands share: flags in, one JSON object as the last line of stdout, exit status 2."""

import json
import os
import pathlib
import sys
from collections.abc import Callable

from absl import app, flags, logging


def main(command: Callable[[list[str]], dict]) -> None:
    """Runs `command` with the parsed flags and prints what it returns as one line of JSON.

    A user's mistake (ValueError, or a flag that does not parse) becomes one line on stderr and
    exit status 2; every other exception keeps its traceback.
    """

    def guarded(argv: list[str]) -> None:
        handler = logging.get_absl_handler()
        handler.setFormatter(_Formatter())
        handler.addFilter(_is_ours)
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}; flags look like --name=value, see --help")
        try:
            result = command(argv)
        except ValueError as error:
            if os.environ.get("QALIGN_TRACEBACK"):
                raise
            _fail(str(error))
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            sys.exit(130)
        print(json.dumps(result, ensure_ascii=False), flush=True)

    app.run(guarded, flags_parser=_parse)


def config_path(path: str) -> str:
    """Finds a recipe file: as given, else among the recipes that came with the package.

    The text after the first `:` is the recipe's argument and is kept.
    """
    name, colon, argument = path.partition(":")
    package = pathlib.Path(__file__).resolve().parent
    for candidate in (pathlib.Path(name), package.parent / name, package / name):
        if candidate.is_file():
            return f"{candidate}{colon}{argument}"
    raise ValueError(f"--config={path}: there is no file {name}, here or among the recipes")


def _is_ours(record) -> bool:
    """Libraries that log through absl too are heard from warnings upwards only."""
    return record.levelno > 20 or "qalign_jax" in record.pathname


class _Formatter(logging.PythonFormatter):
    """Time and text; the source position only for warnings and worse."""

    def format(self, record):
        if record.levelno > 20:
            return super().format(record)
        return f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()}"


def _parse(argv: list[str]) -> list[str]:
    for index, argument in enumerate(argv):
        if argument.startswith("--config="):
            try:
                argv[index] = "--config=" + config_path(argument.removeprefix("--config="))
            except ValueError as error:
                _fail(str(error))
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(f"{error} (see --help)")


def _fail(message: str) -> None:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    print(f"error: {' '.join(lines)}", file=sys.stderr, flush=True)
    sys.exit(2)
