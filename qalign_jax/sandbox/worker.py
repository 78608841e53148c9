"""The program inside the sandbox: runs the blocks of one solution, with the standard library alone.

It reads JSON lines from standard input, first its limits and filter, then blocks, and answers each
with one JSON line. Once a block has run, this process is the solution's: the host trusts nothing
that comes from it.
"""

import ast
import base64
import ctypes
import io
import json
import os
import resource
import sys
import traceback
import types

MB = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)


class Output(io.TextIOBase):
    """Keeps the first `room` characters that are written."""

    def __init__(self, room):
        self.pieces, self.room = [], room

    def writable(self):
        return True

    def write(self, text):
        piece = text[: self.room]
        if piece:
            self.pieces.append(piece)
            self.room -= len(piece)
        return len(text)

    def text(self):
        return "".join(self.pieces)


def system_call(name, *arguments):
    """Calls a function of libc that returns 0 where it succeeds."""
    if getattr(LIBC, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name} failed in the sandbox")


def mount_scratch(megabytes):
    """Mounts the folder, which bwrap cannot limit in its number of files: kernel memory."""
    no_set_id, no_devices, no_programs = 2, 4, 8
    flags = no_set_id | no_devices | no_programs
    options = f"size={megabytes}m,nr_inodes=1000,mode=700".encode()
    system_call("mount", b"scratch", b"/scratch", b"tmpfs", flags, options)
    os.chdir("/scratch")


def drop_capabilities():
    """Gives up the capability to mount; without execve none can be had again."""
    version_3, this_process = 0x20080522, 0
    header = (ctypes.c_uint32 * 2)(version_3, this_process)
    effective_permitted_inheritable = (ctypes.c_uint32 * 6)()
    system_call("capset", header, effective_permitted_inheritable)


def limit(setup):
    limits = {
        resource.RLIMIT_CPU: setup["cpu_seconds"],
        resource.RLIMIT_AS: setup["memory_mb"] * MB,
        resource.RLIMIT_FSIZE: setup["scratch_mb"] * MB,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 1,
        resource.RLIMIT_CORE: 0,
    }
    for name, most in limits.items():
        resource.setrlimit(name, (most, most))


def install_filter(instructions):
    """Installs the seccomp filter, for good."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    program = Program(len(instructions) // 8, instructions)
    set_seccomp, mode_filter = 22, 2
    system_call("prctl", set_seccomp, mode_filter, ctypes.byref(program), 0, 0)


def run_block(code, namespace):
    """Runs a block; prints the value of a last expression, as a notebook does."""
    module = ast.parse(code, "<block>")
    last = module.body.pop() if module.body and isinstance(module.body[-1], ast.Expr) else None
    exec(compile(module, "<block>", "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<block>", "eval"), namespace)
        if value is not None:
            print(repr(value))


def answer(request, namespace, room):
    """Runs a request's block, and calls the function that it names; returns the message."""
    output = Output(room)
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = output
    sys.stdin = io.StringIO()
    reserve = bytearray(4 * MB)  # to answer with when memory has run out
    status, value = "ok", None
    try:
        run_block(request["code"], namespace)
        if request["call"]:
            value = str(eval(request["call"] + "()", namespace))[:room]
    except BaseException as error:
        del reserve
        error = error.with_traceback(None)  # it keeps the block's variables
        status = "memory" if isinstance(error, MemoryError) else "error"
        lines = traceback.format_exception_only(error)
        new_line = "\n" if output.pieces and not output.pieces[-1].endswith("\n") else ""
        output.write(new_line + lines[-1])
    return {"status": status, "output": output.text(), "value": value}


def main():
    requests, results = os.fdopen(os.dup(0), "rb"), os.dup(1)

    def send(message):
        left = json.dumps(message).encode() + b"\n"
        while left:
            left = left[os.write(results, left) :]

    setup = json.loads(requests.readline())
    mount_scratch(setup["scratch_mb"])
    drop_capabilities()
    limit(setup)
    install_filter(base64.b64decode(setup["filter"]))
    null = os.open("/dev/null", os.O_RDWR)  # in place of the host's pipes and file
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.path.append("/packages")
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    send("ready")
    for line in requests:
        send(answer(json.loads(line), module.__dict__, setup["output_characters"] + 1))
    os._exit(0)


if __name__ == "__main__":
    main()
