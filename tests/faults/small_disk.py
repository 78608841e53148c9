"""Code with a file system of a few megabytes of its own, which it fills and frees."""

import json
import os
import subprocess
import sys

# What the code finds: `disk`, the folder of the file system, and these functions.
SETUP = """
import json, os, pathlib, resource, subprocess, sys
from qalign_jax.faults import storage

disk, work = map(pathlib.Path, sys.argv[1:3])

def fill():
    with open(disk / "ballast", "ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

def there():
    return sorted(
        str(path.relative_to(disk)) for path in disk.rglob("*") if path.name != "ballast"
    )

def grow(call, step=4096):
    '''Calls on a full disk that has `step` bytes more each time, until there is enough.

    Returns the messages, and what each failure has left on the disk.
    '''
    fill()
    messages, left = [], []
    while True:
        try:
            call()
            break
        except storage.StorageFailed as error:
            messages.append(str(error))
            left.append(there())
        os.truncate(disk / "ballast", os.path.getsize(disk / "ballast") - step)
    (disk / "ballast").unlink()
    return {"messages": messages, "left": left, "there": there()}
"""


def run(code, disk, work, megabytes, *arguments):
    """The JSON on the last line that the code prints.

    Args:
      disk: an empty folder, where the file system is mounted for the code alone.
      work: a folder of the ordinary file system.
    """
    done = subprocess.run(
        [
            *("bwrap", "--dev-bind", "/", "/"),
            *("--size", str(int(megabytes * 2**20)), "--tmpfs", disk),
            *(sys.executable, "-W", "ignore", "-c", SETUP + code, disk, work, *arguments),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
