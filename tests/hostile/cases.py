"""Runs cases of hostile input, each a reader and a seed, in forked children with limits.

    python -m tests.hostile.cases --seeds=1000 [READER ...]

prints what CI would fail on. A case is the reader's own small input with one of its files mutated,
both by the seed. What a child may not do is refused or noticed: memory beyond a limit, time beyond
a limit, a crash, a file written outside the case's folder, a process, an unpickled class.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings

from tests.hostile.mutations import mutate
from tests.hostile.readers import READERS

SECONDS = 30  # of one case, before it counts as a hang
MEMORY = 1 << 30  # bytes of a child, beside what it has when it begins
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
             "pickle.find_class", "socket.connect", "ctypes.dlopen")  # fmt: skip
# What tensorboardX copies by pickle.
COPIED = [("tensorboardX.proto.event_pb2", "Event"), ("builtins", "object")]
COPIED += [("copyreg", "_reconstructor"), ("copyreg", "__newobj__")]
# What an error of Python's own, or of a library's depths, reads like.
DEPTHS = re.compile(
    r"invalid literal|not enough values|too many values|zip\(\) arg|could not convert|NoneType|"
    r"embedded null|Exceeds the limit|Out of range|object is not|has no attribute|codec can't|"
    r"must be str|__init__|unhashable|Traceback|Expecting value$"
)


def template(reader, folder):
    """The reader's whole input, as (name, bytes) in the order of names."""
    READERS[reader].make(folder)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [(name, (folder / name).read_bytes()) for name in names]


def mutated(reader, seed, whole):
    """The name of the file that a case mutates, and its new bytes."""
    chance = random.Random(f"{reader} {seed}")
    only = READERS[reader].only
    names = [name for name, _ in whole if not only or name.rsplit("/", 1)[-1] in only]
    name = chance.choice(names)
    return name, mutate(dict(whole)[name], name, chance)


def verdict(reader, name, folder, events):
    """ "accepted", "refused: ..", or what is wrong with how the reader took the input."""
    events.clear()
    try:
        READERS[reader].read(folder)
        found = "accepted"
    except ValueError as error:
        said = str(error)
        named = str(folder) in said or os.path.basename(name) in said
        found = f"refused: {said}"
        flag = "flag --config." in said  # ml_collections puts Python's words behind the key
        if not named or (DEPTHS.search(said) and not flag):
            found = f"nameless: {said}"
    except (OSError, Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        found = (
            f"raised: {type(error).__name__} {str(error)[:200]} at {last.filename}:{last.lineno}"
        )
    except BaseException as error:  # a panic of a library in Rust
        found = f"raised: {type(error).__name__} {error}"
    if events:
        found = f"did: {events[0]}"
    return found


def child(reader, seeds, whole, root, out):
    """Writes a line before each case and one with its verdict after it."""
    used = int(re.search(r"VmData:\s+(\d+)", open("/proc/self/status").read())[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    events = []
    sys.addaudithook(lambda event, args: watch(event, args, str(root), events))
    for seed in seeds:
        folder = root / f"{seed}"
        for name, content in whole:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        name, content = mutated(reader, seed, whole)
        (folder / name).write_bytes(content)
        out.write(f"{json.dumps([seed, name])}\n")
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = verdict(reader, name, folder, events)
        out.write(f"{json.dumps([seed, name, found])}\n")
        shutil.rmtree(folder, ignore_errors=True)


def watch(event, args, root, events):
    if event in FORBIDDEN and not (event == "pickle.find_class" and args in COPIED):
        events.append(f"{event} {str(args)[:200]}")
    elif event == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(args[0]))
        if (
            args[2] & (os.O_WRONLY | os.O_RDWR)
            and not path.startswith((root, os.devnull))
            and path != tempfile.gettempdir()
        ):
            events.append(f"wrote {path}")


def batch(reader, seeds, whole, root):
    """Yields [seed, name, verdict] of the seeds, in a child, and a new one where it ends early."""
    seeds = list(seeds)
    while seeds:
        read, write = os.pipe()
        if not (process := os.fork()):
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with open(write, "w", buffering=1, encoding="utf-8", errors="replace") as out:
                child(reader, seeds, whole, root, out)
                out.flush()
            os._exit(0)
        os.close(write)
        at = [seeds[0], ""]
        with open(read, "rb", buffering=0) as lines:
            text, hangs = b"", False
            while True:
                if not select.select([lines], [], [], SECONDS)[0]:
                    hangs = True
                    os.kill(process, signal.SIGKILL)
                    break
                if not (part := lines.read(1 << 16)):
                    break
                *whole_lines, text = (text + part).split(b"\n")
                for line in whole_lines:
                    at = json.loads(line)
                    if len(at) == 3:
                        yield at
                        seeds.remove(at[0])
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if seeds:
            yield [*at[:2], f"hangs {SECONDS} s" if hangs else f"ended with status {status}"]
            seeds.remove(at[0])


def run(cases):
    """{reader: seeds} -> [reader, seed, name, verdict] of each."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        root = pathlib.Path(place)
        for reader, seeds in cases.items():
            made = root / "made.json"
            if not (process := os.fork()):  # devices are for children alone
                try:
                    whole = template(reader, root / "made")
                    made.write_text(json.dumps([[n, c.decode("latin1")] for n, c in whole]))
                    os._exit(0)
                finally:
                    traceback.print_exc()
                    os._exit(1)
            if os.waitpid(process, 0)[1]:
                raise RuntimeError(f"the input of {reader!r} could not be made")
            whole = [(n, c.encode("latin1")) for n, c in json.loads(made.read_text())]
            shutil.rmtree(root / "made")
            began = time.monotonic()
            found += [[reader, *each] for each in batch(reader, seeds, whole, root / "case")]
            print(f"{reader}: {len(seeds)} in {time.monotonic() - began:.1f} s", file=sys.stderr)
            shutil.rmtree(root / "case", ignore_errors=True)
    return found


def is_good(found):
    return found == "accepted" or found.startswith("refused: ")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seeds", type=int, default=0, help="of each reader; by default as in CI")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--more", type=json.loads, default={}, help="{reader: seeds}, as JSON")
    parser.add_argument("--json", action="store_true", help="all verdicts, for the tests")
    asked = parser.parse_args()
    cases = {}
    for name in asked.readers or READERS:
        seeds = range(asked.first, asked.first + (asked.seeds or READERS[name].count))
        cases[name] = list(dict.fromkeys((*asked.more.get(name, ()), *seeds)))
    found = run(cases)
    if asked.json:
        print(json.dumps(found))
        return
    bad = [each for each in found if not is_good(each[3])]
    for each in bad:
        print(*each)
    kinds = collections.Counter(each[3].split(":")[0].split(" ")[0] for each in found)
    print(len(found), "cases,", dict(kinds))


if __name__ == "__main__":
    main()
