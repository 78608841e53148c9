"""What the commands share: flags, one JSON object as the last line of stdout, exit statuses."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from qalign_jax import logs
from qalign_jax.parallel.barrier import MissingProcess
from qalign_jax.recipe.file import DEFAULT, MISTAKES, find, mistake


def main(
    command: Callable[[list[str]], dict],
    define_flags: Callable[[], None],
    positional: bool = False,
) -> None:
    """Runs `command` with the parsed flags and prints what it returns as one line of JSON.

    `command` takes argv; with `positional` it holds what stands between the flags too.

    Flags are defined here and not on import, because the commands' functions are a library too.

    A user's mistake (ValueError, or a flag that does not parse) becomes one line on stderr and
    exit status 2; a loss that is not finite, or a process that is missing, one line and status 1.
    Every other exception keeps its traceback.
    """

    def guarded(argv: list[str]) -> None:
        logs.set_format()
        if len(argv) > 1 and not positional:
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
    flags.FLAGS.set_gnu_getopt(positional)  # flags may stand behind an argument
    app.run(guarded, flags_parser=_parse)


def define_recipe() -> None:
    """Defines --config, a recipe with overrides; its value is a ConfigDict."""
    config_flags.DEFINE_config_file(
        "config",
        None,  # _parse puts the default in, and reports a mistake in an override
        "The recipe, a file that returns a ConfigDict, with its argument after a colon: "
        "configs/math_cot.py:llama2_7b. Any value in it can be changed: "
        f"--config.response_alignment.lr=1e-5. By default {DEFAULT}.",
    )


def _parse(argv: list[str]) -> list[str]:
    if {"--help", "-help", "-h", "-?"} & set(argv):
        print(_help())
        sys.exit(0)
    try:
        if "config" in flags.FLAGS:
            argv = _with_recipe(argv)
        return flags.FLAGS(argv)
    except MISTAKES as error:
        if os.environ.get("QALIGN_TRACEBACK"):
            raise
        hint = "" if isinstance(error, (AttributeError, KeyError)) else " (see --help)"
        _fail(mistake(error) + hint)


def _help() -> str:
    """What the command does, its flags as they were defined, and its examples at the end."""
    main = sys.modules["__main__"]
    paragraphs = (main.__doc__ or "").strip().split("\n\n")
    examples = [text for text in paragraphs if text.lstrip().startswith("python -m ")]
    width = min(shutil.get_terminal_size().columns, 100)
    command = f"python -m {main.__spec__.name}" if main.__spec__ else sys.argv[0]
    lines = [f"usage: {command} [--flag=value ...]"]
    for text in paragraphs:
        if text not in examples:
            lines += ["", *textwrap.wrap(text, width)]
    lines.append("")
    known = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    known.sort(key=lambda flag: flag.name != "config")  # the others as they were defined
    names = [f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}" for flag in known]
    column = max(map(len, names)) + 2
    for name, flag in zip(names, known, strict=True):
        text = f"{flag.help}{_default(flag)}"
        first, others = f"{name:{column}}", " " * column
        lines += textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others)
    lines += ["", "for example"]
    lines += [textwrap.indent(textwrap.dedent(text), "    ") for text in examples]
    return "\n".join(lines)


def _default(flag: flags.Flag) -> str:
    if any("other than None" in validator.message for validator in flag.validators):
        return " (required)"
    value = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
    return "" if value is None or value is False or value == "" else f" (default: {value})"


def _with_recipe(argv: list[str]) -> list[str]:
    """Finds the file of --config, or adds the default one in front of its overrides."""
    argv = list(argv)
    for index, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            if equals:
                argv[index] = f"--config={find(value)}"
            elif index + 1 < len(argv):
                argv[index + 1] = find(argv[index + 1])
            return argv
    return [argv[0], f"--config={find(DEFAULT)}", *argv[1:]]


def _fail(message: str) -> NoReturn:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    print(f"error: {' '.join(lines)}", file=sys.stderr, flush=True)
    sys.exit(2)
