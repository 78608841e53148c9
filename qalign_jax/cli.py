"""What the commands share: flags, one JSON object as the last line of stdout, exit statuses.

    0    done
    1    an error of the program (with its traceback), or a loss that is not finite
    2    a mistake in the command, the recipe or the data
    74   no space, or storage that fails for good: what was written before is whole
    75   a process on another host has ended or hangs, or has not joined
    130  Ctrl-C, within 3 seconds; a training step that runs is finished and its state saved
    143  SIGTERM, or a notice that the machine is pre-empted or maintained: as Ctrl-C, within 20
         seconds

After all but 2 the same command goes on from what is finished. One line on stderr says which.
"""

import json
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from qalign_jax import credentials, logs, mistakes
from qalign_jax.faults import interrupts, notices, storage
from qalign_jax.parallel import barrier
from qalign_jax.recipe.file import DEFAULT, MISTAKES, find, mistake, read, wrong_override


def main(
    command: Callable[[list[str]], dict],
    define_flags: Callable[[], None],
    positional: bool = False,
) -> None:
    """Runs `command` with the parsed flags and prints what it returns as one line of JSON.

    `command` takes argv; with `positional` it holds what stands between the flags too.

    Flags are defined here and not on import, because the commands' functions are a library too.

    A user's mistake (ValueError, or a flag that does not parse), storage that is full or fails, a
    loss that is not finite, a process that is missing and a signal become one line on stderr and
    their exit status. Every other exception keeps its traceback.
    """

    def guarded(argv: list[str]) -> None:
        logs.set_format()
        if len(argv) > 1 and not positional:
            _fail(f"unexpected argument {argv[1]!r}; flags look like --name=value, see --help")
        try:
            try:
                with storage.writing("a file"):
                    result = command(argv)
            except SystemExit:  # stopped by a signal, in all processes
                barrier.leave()
                raise
            barrier.leave()
        except barrier.MissingProcess as error:
            _fail(error, barrier.STATUS)
        except Exception as error:
            barrier.settle()
            if isinstance(error, storage.StorageFailed):
                _fail(error, storage.STATUS)
            if isinstance(error, ValueError) and not os.environ.get("QALIGN_TRACEBACK"):
                _fail(error)
            if isinstance(error, FloatingPointError):
                _fail(error, 1)
            traceback.print_exc()
            barrier.abandon(1)
        interrupts.ignore()  # all is done and written
        print(json.dumps(result, ensure_ascii=False), flush=True)

    interrupts.watch()
    notices.watch()
    define_flags()
    flags.FLAGS.set_gnu_getopt(positional)  # flags may stand behind an argument
    try:
        app.run(guarded, flags_parser=_parse)
    except interrupts.Interrupted as interrupt:
        interrupts.end(interrupt.number)


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
            argv = _with_recipe(_last_of_each(argv))
        return flags.FLAGS(argv)
    except MISTAKES as error:
        if os.environ.get("QALIGN_TRACEBACK"):
            raise
        hint = "" if isinstance(error, (AttributeError, KeyError)) else " (see --help)"
        _fail(mistakes.Mistakes(_wrong_overrides(argv) or [mistake(error) + hint]))


def _last_of_each(argv: list[str]) -> list[str]:
    """The arguments, without overrides that come again: the last one counts, as of every flag.

    ml_collections would join those of a tuple.
    """
    keys = [argument.partition("=")[0] if _is_override(argument) else "" for argument in argv]
    return [
        argument
        for place, (argument, key) in enumerate(zip(argv, keys, strict=True))
        if not key or key not in keys[place + 1 :]
    ]


def _is_override(argument: str) -> bool:
    return argument.lstrip("-").startswith("config.") and "=" in argument


def _wrong_overrides(argv: list[str]) -> list[str]:
    """The lines for overrides that the recipe does not take, and for what else is wrong with it;
    none where the mistake lies elsewhere.
    """
    recipe = [argument for argument in argv if argument.lstrip("-").startswith("config=")]
    if "config" not in flags.FLAGS or not recipe:
        return []
    path = recipe[0].partition("=")[2]
    overrides = [argument for argument in argv if _is_override(argument)]
    wrong = {override: wrong_override(path, override) for override in overrides}
    if found := [line for line in wrong.values() if line]:
        from qalign_jax.recipe.stages.base import find_stages  # imports JAX

        values = [argument.partition("=") for argument in overrides if not wrong[argument]]
        taken = {key.lstrip("-").removeprefix("config."): value for key, _, value in values}
        found += find_stages(read(path, taken))[1]
    return found


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
                argv[index : index + 2] = [f"--config={find(argv[index + 1])}"]
            return argv
    return [argv[0], f"--config={find(DEFAULT)}", *argv[1:]]


def _fail(error: str | Exception, status: int = 2) -> NoReturn:
    """Ends the command with one line, or one for each of several mistakes."""
    lines = [line.strip() for line in credentials.hidden(str(error)).splitlines() if line.strip()]
    joint = "\n  " if isinstance(error, mistakes.Mistakes) else " "
    print(f"error: {joint.join(lines)}", file=sys.stderr, flush=True)
    barrier.abandon(status)
