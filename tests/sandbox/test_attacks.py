"""Hostile programs: each is contained with the right verdict, and the next program runs.

A program that gets what it wants prints, writes or sends REACHED.
"""

import os
import pathlib
import platform
import socket

import pytest

import qalign_jax

PACKAGE = str(pathlib.Path(qalign_jax.__file__).parent)
HOME = str(pathlib.Path.home())
FAKE = '{"status": "ok", "output": "FAKE", "value": "FAKE"}'
TO_EVERY_DESCRIPTOR = """
import os
def to_every_descriptor(data):
    for descriptor in range(64):
        try:
            os.write(descriptor, data)
        except OSError:
            pass
"""

# name: (program, verdict, what its output ends with)
ATTACKS = {
    "memory bomb": ("held = []\nwhile True: held.append(bytes(10**5))", "memory", "MemoryError"),
    "one huge allocation": ("bytearray(2**30)", "memory", "MemoryError"),
    "fork bomb": ("import os\nwhile True: os.fork()", "error", "Operation not permitted"),
    "daemon": (
        "import subprocess\nsubprocess.Popen(['/python/bin/python'], start_new_session=True)",
        "error", "Operation not permitted",
    ),
    "exec": ("import os\nos.execv('/python/bin/python', ['python'])", "error", "permitted"),
    "thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
        "error", "can't start new thread",
    ),
    "reading the password file": ("print(open('/etc/passwd').read())", "error", "'/etc/passwd'"),
    "reading the home folder": (
        f"import os\nprint(os.listdir({HOME!r}), 'REACHED')", "error", f"directory: {HOME!r}",
    ),
    "reading the checkout": (f"print(open({__file__!r}).read())", "error", f"{__file__!r}"),
    "reading the package": (f"import os\nos.listdir({PACKAGE!r})", "error", f"{PACKAGE!r}"),
    "reading processes": ("print(open('/proc/1/environ').read())", "error", "'/proc/1/environ'"),
    "reading the environment": (
        "import ctypes, os\nctypes.CDLL(None).getenv.restype = ctypes.c_char_p\n"
        "print(os.getenv('QALIGN_TEST_SECRET'), ctypes.CDLL(None).getenv(b'QALIGN_TEST_SECRET'))",
        "ok", "None 0\n",
    ),
    "reading all of the environment": (
        "import os\nprint(sorted(os.environ))", "ok",
        "['HOME', 'LD_LIBRARY_PATH', 'OPENBLAS_NUM_THREADS', 'PWD', 'TMPDIR']\n",
    ),
    "devices": ("import os\nprint(os.listdir('/dev'))", "ok", "['null']\n"),
    "our packages": (
        "import os, pathlib\nprint([*pathlib.Path(os.__file__).parent.glob('*-packages/*')])",
        "ok", "[]\n",
    ),
    "symbolic link": ("import os\nos.symlink('/etc/passwd', 'link')", "error", "'link'"),
    "hard link": ("import os\nos.link('/worker.py', 'link')", "error", "'link'"),
    "filling the disk": (
        "for name in 'ab':\n  with open(name, 'wb') as file:\n"
        "    for _ in range(15): file.write(bytes(1 << 20))", "error", "No space left on device",
    ),
    "a file too large": (
        "with open('a', 'wb') as file:\n  file.truncate(17 << 20)", "error", "File too large",
    ),
    "filling kernel memory with files": (
        "for number in range(10**7): open(str(number), 'w').close()", "error", "'999'",
    ),
    "setuid": ("import os\nos.setuid(0)", "error", "Operation not permitted"),
    "killing the parent": ("import os\nos.kill(os.getppid(), 9)", "error", "not permitted"),
    "killing a host's process": (f"import os\nos.kill({os.getpid()}, 9)", "error", "permitted"),
    "killing everything": ("import os\nos.kill(-1, 9)", "error", "Operation not permitted"),
    "crash": ("import ctypes\nctypes.string_at(0)", "killed", ""),
    "abort": ("import os\nos.abort()", "killed", ""),
    "sys.exit": ("import sys\nprint(1)\nsys.exit(3)", "error", "1\nSystemExit: 3\n"),
    "os._exit": ("import os\nos._exit(0)", "killed", ""),
    "deep recursion": ("def deep(): deep()\ndeep()", "error", "recursion depth exceeded\n"),
    "printing a huge integer": ("print(10**5000)", "error", "limit\n"),
    "input": ("input()", "error", "EOFError: EOF when reading a line\n"),
    "printing a fake result": (f"print({FAKE!r})", "ok", FAKE + "\n"),
    "sending a second result": (
        TO_EVERY_DESCRIPTOR + f"to_every_descriptor({FAKE!r}.encode() + b'\\n' * 2)", "killed", "",
    ),
    "sending nested lists": (
        TO_EVERY_DESCRIPTOR + "to_every_descriptor(b'[' * 10**4 + b'\\n')\nwhile True: pass",
        "killed", "",
    ),
    "sending a result of other types": (
        TO_EVERY_DESCRIPTOR
        + """to_every_descriptor(b'{"status": [], "output": 1, "value": {}}\\n')"""
        "\nwhile True: pass",
        "killed", "",
    ),
    "sending what is not UTF-8": (
        TO_EVERY_DESCRIPTOR + "to_every_descriptor(b'\\xff\\n')\nwhile True: pass", "killed", "",
    ),
    "closing every descriptor": ("import os\nos.closerange(0, 64)", "killed", ""),
    "flooding every descriptor": (
        TO_EVERY_DESCRIPTOR + "while True: to_every_descriptor(bytes(10**6))", "killed", "",
    ),
    "replacing the streams": (
        "import sys\nsys.stdout = sys.stderr = sys.stdin = sys.__stdout__ = None", "ok", "",
    ),
    "replacing builtins": (
        "import builtins\nfor name in ('print', 'len', 'str', 'repr', 'isinstance'):\n"
        "  setattr(builtins, name, None)", "killed", "",
    ),
    "replacing json": ("import json\njson.dumps = lambda *_: 'REACHED'", "killed", ""),
    "an exception that exits when printed": (
        "import os\nclass E(Exception):\n  def __str__(self): os._exit(0)\nraise E", "killed", "",
    ),
    "code at exit": (
        "import atexit\n@atexit.register\ndef never():\n  while True: pass", "ok", "",
    ),
    "a signal handler": (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None);", "ok", "",
    ),
    "NUL in the code": ("print(1)\0", "error", "null bytes\n"),
    "a surrogate in the code": ("print('\ud800')", "error", "surrogates not allowed\n"),
    "NUL in the output": ("print('\\0')", "ok", "\0\n"),
    "a surrogate in the output": ("print('\\ud800')", "ok", "?\n"),
    "10 MB of code": ("x = 1\n" * 1_700_000, "error", "at most 100000 are run"),
    "too many parentheses": ("(" * 10**4, "error", "too many nested parentheses\n"),
}  # fmt: skip


def assert_contained(sandbox, outcome, status, ending):
    assert outcome.status == status, outcome
    assert outcome.output.rstrip("\n").endswith(ending.rstrip("\n")) or status == "killed", outcome
    assert "REACHED" not in outcome.output
    assert sandbox.run("6 * 7").output == "42\n"


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_contained(name, sandbox):
    program, status, ending = ATTACKS[name]
    assert_contained(sandbox, sandbox.run(program), status, ending)


ENDLESS = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(10**6)",
    "output": "while True: print('x' * 10**4)",
    "integer": "10**10**9",
    "printed integer": "import sys\nsys.set_int_max_str_digits(0)\nprint(10**10**7)",
    "exception handler": "while True:\n  try: 1 / 0\n  except BaseException: pass",
    "message": TO_EVERY_DESCRIPTOR + "to_every_descriptor(b'1')\nwhile True: pass",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_a_timeout(name, impatient):
    outcome = impatient.run(ENDLESS[name])
    assert_contained(impatient, outcome, "timeout", "no result within 2 seconds")


def test_text_of_a_result_that_never_ends_is_a_timeout(impatient):
    program = "class Slow:\n  def __str__(self):\n    while True: pass\nsolution = Slow"
    assert impatient.run(program, call="solution").status == "timeout"


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.setrecursionlimit(10**9)\ndef deep(): deep()\ndeep()",
        "import sys\nsys.setrecursionlimit(10**9)\nvalue = []\n"
        "for _ in range(10**6): value = [value]\nrepr(value)",
        "-" * 90_000 + "1",
        "x" + ".x" * 40_000,
    ],
    ids=["calls", "repr", "signs", "attributes"],
)
def test_recursion_without_a_limit_ends_the_program_alone(program, impatient):
    assert impatient.run(program).status in ("error", "memory", "killed", "timeout")
    assert impatient.run("6 * 7").output == "42\n"


def test_a_forged_result_speaks_for_its_own_program_alone(sandbox):
    forged = f"to_every_descriptor({FAKE!r}.encode() + b'\\n')\nwhile True: pass"
    with sandbox.session() as session:
        outcome = session.run(TO_EVERY_DESCRIPTOR + forged)
        assert (outcome.status, outcome.output, outcome.value) == ("ok", "FAKE", "FAKE")
    assert sandbox.run("print(6 * 7)").output == "42\n"


def test_nothing_can_be_deleted_or_written_outside_the_scratch_folder(sandbox, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("kept")
    program = f"""
import os
done = []
for folder, folders, files in os.walk('/', topdown=False):
    for act, path in [(os.remove, os.path.join(folder, name)) for name in files] + [
        (os.rmdir, folder), (lambda path: open(path, 'w'), os.path.join(folder, 'new'))
    ]:
        try:
            act(path)
            done.append(path)
        except OSError:
            pass
try:
    open({str(kept)!r}, 'w')
except OSError:
    print(done)
"""
    assert sandbox.run(program).output == "['/scratch/new']\n"
    assert kept.read_text() == "kept"
    assert pathlib.Path(PACKAGE, "sandbox", "worker.py").is_file()


def test_nothing_that_a_program_changes_is_seen_by_the_next(sandbox):
    change = "import math, builtins\nmath.sqrt = builtins.sum = abs\nopen('left', 'w').close()"
    assert sandbox.run(change).status == "ok"
    assert sandbox.run("import math, os\nmath.sqrt(4), sum([1, 2]), os.listdir('.')").output == (
        "(2.0, 3, [])\n"
    )


@pytest.mark.parametrize("kind", ["TCP", "UDP", "Unix", "abstract Unix"])
def test_no_server_of_the_host_is_reached(kind, sandbox, tmp_path):
    family = socket.AF_UNIX if "Unix" in kind else socket.AF_INET
    form = socket.SOCK_DGRAM if kind == "UDP" else socket.SOCK_STREAM
    address = {"Unix": str(tmp_path / "s"), "abstract Unix": f"\0qalign-{os.getpid()}"}
    with socket.socket(family, form) as server:
        server.bind(address.get(kind, ("127.0.0.1", 0)))
        if kind != "UDP":
            server.listen()
        server.settimeout(0)
        outcome = sandbox.run(
            "import socket\n"
            f"client = socket.socket({int(family)}, {int(form)})\n"
            f"client.connect({server.getsockname()!r})\nclient.send(b'REACHED')"
        )
        assert_contained(sandbox, outcome, "error", "Operation not permitted")
        with pytest.raises(BlockingIOError):
            server.recvfrom(10) if kind == "UDP" else server.accept()


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.getaddrinfo('example.com', 80)",
        "import socket\nsocket.create_connection(('169.254.169.254', 80), 5)",
        "import urllib.request\n"
        "urllib.request.urlopen('http://169.254.169.254/computeMetadata/v1/', timeout=5)",
    ],
    ids=["DNS", "metadata by TCP", "metadata by HTTP"],
)
def test_no_name_and_no_metadata_server_is_reached(program, sandbox):
    outcome = sandbox.run(program)
    assert outcome.status == "error"
    assert outcome.output.startswith(("PermissionError", "socket.gaierror", "urllib.error"))


CALLS = {  # numbers on x86_64 and aarch64
    "socketpair": (53, 199), "pipe2": (293, 59), "clone": (56, 220), "clone3": (435, 435),
    "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129), "tgkill": (234, 131),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "prctl": (157, 167), "capset": (126, 91),
    "setuid": (105, 146), "setgid": (106, 144), "setgroups": (116, 159), "ioctl": (16, 29),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "unshare": (272, 97), "setns": (308, 268), "mknodat": (259, 33), "symlinkat": (266, 36),
    "fchmodat": (268, 53), "fchownat": (260, 54), "memfd_create": (319, 279), "shmget": (29, 194),
    "msgget": (68, 186), "mq_open": (240, 180), "keyctl": (250, 219), "add_key": (248, 217),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "inotify_init1": (294, 26), "epoll_create1": (291, 20),
    "timer_create": (222, 107), "init_module": (175, 105), "kexec_load": (246, 104),
    "reboot": (169, 142), "personality": (135, 92), "seccomp": (317, 277), "mlock": (149, 228),
    "sched_setaffinity": (203, 122), "setpriority": (141, 140), "swapon": (167, 224),
}  # fmt: skip


def test_no_other_system_call_is_made(sandbox):
    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    numbers = {name: pair[column] for name, pair in CALLS.items()}
    program = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {numbers!r}.items():
    if (libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno()) != (-1, 1):
        print(name)
"""
    outcome = sandbox.run(program)
    assert (outcome.status, outcome.output) == ("ok", "")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine code is x86_64's")
def test_system_calls_by_the_32_bit_table_end_the_program(sandbox):
    program = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # mov eax, 20; int 0x80; ret: getpid
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
    assert sandbox.run(program).status == "killed"
