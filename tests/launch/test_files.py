"""The folder launch/: linters, help texts, the image, and slices as Python names them."""

import importlib.metadata
import re
import shlex
import subprocess

import pytest
from packaging.requirements import Requirement

from qalign_jax.configs import slices
from qalign_jax.parallel.chips import CHIPS, parse_slice
from tests.launch.cloud import ROOT

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
COMMANDS = [path.name for path in SCRIPTS if path.name not in ("common.sh", "tpus.sh", "worker.sh")]
EVERY_SLICE = [f"{chip}:{shape}" for chip, known in CHIPS.items() for shape in known.slices]
RECIPES = slices.MESHES | slices.STEERED_MESHES
VERSIONS = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


def test_shellcheck_finds_nothing(linter):
    found = subprocess.run(
        [linter("shellcheck"), "--external-sources", *SCRIPTS], capture_output=True, text=True
    )
    assert len(SCRIPTS) == 6 and found.returncode == 0, found.stdout


def test_hadolint_finds_nothing(linter):
    command = [linter("hadolint"), ROOT / "launch/Dockerfile"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_image_gets_the_files_that_it_copies_and_no_others():
    ignored = (ROOT / "launch/Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "launch/Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == allowed
    assert ignored[0] == "*" and all((ROOT / name).exists() for name in allowed)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_ends_with_an_example(name):
    found = subprocess.run([ROOT / "launch" / name, "--help"], capture_output=True, text=True)
    lines = found.stdout.splitlines()
    assert found.returncode == 0 and len(lines) <= 24 and max(map(len, lines)) <= 100
    assert lines[-2].startswith(f"  launch/{name} ") and lines[-2].endswith("\\")


def asked(script: str, slice_: str) -> dict[str, str]:
    """The options of the create command for a slice, and the hosts that are told."""
    command = [ROOT / "launch" / script, "create", "--name=a", "--zone=z", f"--slice={slice_}"]
    found = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    _, create = found.stdout.splitlines()
    return dict(word.split("=", 1) for word in shlex.split(create) if word.startswith("--"))


def described(slice_: str) -> str:
    """How gke.sh describes a slice: its hosts and the chips of one."""
    command = [ROOT / "launch/gke.sh", "--name=a", "--image=i", "--config=a.py", "--workdir=gs://a"]
    found = subprocess.run(
        [*command, f"--slice={slice_}"], capture_output=True, text=True, check=True
    )
    return found.stdout


@pytest.mark.parametrize("name", EVERY_SLICE)
def test_a_slice_of_python_is_the_scripts_by_both_names(name):
    slice_ = parse_slice(name)
    cores = slice_.size * CHIPS[slice_.chip].cores
    prefix = {"v5e": "v5litepod"}.get(slice_.chip, slice_.chip)
    for given in (name, f"{slice_.chip}-{cores}"):
        options = asked("tpu_vm.sh", given)
        assert options["--accelerator-type"] == f"{prefix}-{cores}"
        assert options["--version"] == VERSIONS[slice_.chip]


@pytest.mark.parametrize("name", sorted({where for _, where in RECIPES}))
def test_every_slice_of_the_recipes_has_hosts_that_make_its_chips(name):
    jobset, slice_ = described(name), parse_slice(name)
    (hosts,), (chips,) = (
        re.findall(pattern, jobset) for pattern in (r"parallelism: (\d+)", r"google.com/tpu: (\d+)")
    )
    assert int(hosts) * int(chips) == slice_.size
    assert f"gke-tpu-topology: {name.partition(':')[2]}\n" in jobset
    assert int(chips) == (8 if name.endswith(":2x4") else min(4, slice_.size))


def test_v5litepod_is_v5e():
    assert asked("queued.sh", "v5litepod-1") == asked("queued.sh", "v5e-1")
    assert asked("queued.sh", "v5e-1")["--runtime-version"] == VERSIONS["v5e"]


def test_the_hosts_are_those_of_the_compilers_slices():
    pytest.importorskip("libtpu")
    for name in EVERY_SLICE:
        slice_ = parse_slice(name)
        if slice_.size > 64 or name.endswith(":2x4"):  # Google's 2x4 has one host, of eight chips
            continue
        hosts = {device.process_index for device in slice_.devices()}
        assert f"parallelism: {len(hosts)}\n" in described(name)


def test_the_constraints_leave_room_for_what_jax_needs_on_a_tpu():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert "jax" in pins
    needed = [Requirement(line) for line in importlib.metadata.requires("jax") if "tpu" in line]
    assert any(each.name == "libtpu" for each in needed)
    for each in needed:
        assert each.name not in pins or pins[each.name] in each.specifier, each
