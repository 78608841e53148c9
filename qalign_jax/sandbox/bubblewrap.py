"""The command line of bubblewrap: what a solution sees of this machine, and why bwrap may refuse.

A solution sees this interpreter and its standard library under /python, numpy, sympy and mpmath
under /packages, the system's folders of shared libraries, and a scratch folder of its own: no
/proc, no /sys, no device but /dev/null, no other file. Only the scratch folder is writable.
"""

import importlib.util
import os
import pathlib
import platform
import shutil
import sys
import sysconfig

PACKAGES = ("numpy", "sympy", "mpmath")
SCRATCH = "/scratch"
APPARMOR = (
    "AppArmor keeps user namespaces from bwrap, as on Ubuntu 24.04: give /usr/bin/bwrap a profile "
    "with `userns,` in /etc/apparmor.d, or: "
    "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
)
# bwrap's own words, the first that match -> what to do
ADVICE = {
    "Unknown option": "this bwrap is too old: install bubblewrap 0.8 or newer",
    "setting up uid map: Permission denied": APPARMOR,
    "loopback: Failed RTM_": APPARMOR,
    "new namespace failed: Permission denied": APPARMOR,
    "max_*_namespaces exceeded": "allow namespaces: sudo sysctl user.max_user_namespaces=10000",
    "namespace": (
        "the kernel or the container allows no user namespaces: in Docker start the container "
        "with --security-opt seccomp=unconfined, or with a profile that allows clone, unshare, "
        "mount, umount2 and pivot_root; on older Debian: "
        "sudo sysctl kernel.unprivileged_userns_clone=1"
    ),
    "Failed to make / slave": (
        "the container's AppArmor profile allows no mounts: in Docker start the container with "
        "--security-opt apparmor=unconfined"
    ),
}


def explain(words: str) -> str:
    """What bwrap, or the interpreter in it, said when it did not start, and what to do."""
    advice = next((text for key, text in ADVICE.items() if key in words), None)
    said = f"the sandbox does not start; bwrap said: {words.strip() or 'nothing'}"
    return f"{said}\n{advice}" if advice else said


def make_command() -> list[str]:
    """The command that starts a sandboxed worker; the worker sets the limits and the filter.

    Raises:
      ValueError: bubblewrap or a package that solutions import is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise ValueError(
            "bubblewrap (bwrap) is not on PATH, and model-written code runs nowhere else; install "
            "it: apt-get install bubblewrap"
        )
    return [
        bwrap, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534",
        "--hostname", "sandbox", "--die-with-parent", "--as-pid-1",
        "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN",  # until the scratch is mounted
        *_interpreter(), *_packages(), *_libraries(),
        "--dev-bind", "/dev/null", "/dev/null",
        "--ro-bind", str(pathlib.Path(__file__).with_name("worker.py")), "/worker.py",
        "--dir", SCRATCH, "--remount-ro", "/",
        "--clearenv", "--setenv", "HOME", SCRATCH, "--setenv", "TMPDIR", SCRATCH,
        "--setenv", "LD_LIBRARY_PATH", "/python/lib", "--setenv", "OPENBLAS_NUM_THREADS", "1",
        "/python/bin/python", "-I", "-S", "-B", "-X", "utf8", "-W", "ignore", "/worker.py",
    ]  # fmt: skip


def _interpreter() -> list[str]:
    """Mounts of the interpreter that a virtual environment is based on, without site-packages."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    target = f"/python/{sys.platlibdir}/{library.name}"
    mounts = _read_only(os.path.realpath(sys.executable), "/python/bin/python")
    mounts += _read_only(library, target)
    for name in ("site-packages", "dist-packages"):
        if (library / name).is_dir():
            hidden = f"{target}/{name}"
            mounts += ["--tmpfs", hidden, "--remount-ro", hidden]
    if sys.base_prefix != "/usr":  # libpython, where it is shared, and what a distribution brings
        for path in sorted(pathlib.Path(sys.base_prefix, "lib").glob("*.so*")):
            mounts += _read_only(path, f"/python/lib/{path.name}")
    return mounts


def _packages() -> list[str]:
    mounts = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{name} is not installed, and solutions import it: pip install sympy")
        folder = pathlib.Path(spec.submodule_search_locations[0])
        for path in (folder, folder.with_name(f"{name}.libs")):  # shared libraries of its wheel
            if path.is_dir():
                mounts += _read_only(path, f"/packages/{path.name}")
    return mounts


def _libraries() -> list[str]:
    """Mounts of the dynamic loader and of the system's shared libraries, where they are."""
    machine = platform.machine()
    paths = (
        f"/lib/{machine}-linux-gnu", f"/usr/lib/{machine}-linux-gnu", "/lib64", "/usr/lib64",
        "/lib/ld-linux-aarch64.so.1",
    )  # fmt: skip
    return [part for path in paths if os.path.exists(path) for part in _read_only(path, path)]


def _read_only(source, target) -> list[str]:
    return ["--ro-bind", str(source), str(target)]
