"""The commands in their own processes: mistakes, help, an installed wheel."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from typing import NamedTuple

import pytest

# Imports take seconds, a mistake does not: each case runs in a fork of one process, after its
# imports. A fork runs and ends as `python -m` does, in its own folder.
FORKS = """
import gc, json, os, runpy, sys
import qalign_jax.fits, qalign_jax.recipe.parts, qalign_jax.recipe.recipe, qalign_jax.reporting.page

gc.freeze()  # or each fork collects, as it ends, what was imported
ended = []
for number, (module, *arguments) in enumerate(json.loads(sys.argv[1])):
    os.mkdir(str(number))
    if not (child := os.fork()):
        os.dup2(os.open(f"{number}.stdout", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(f"{number}.stderr", os.O_WRONLY | os.O_CREAT), 2)
        os.chdir(str(number))
        sys.argv = [module, *arguments]
        runpy.run_module(f"qalign_jax.{module}", run_name="__main__", alter_sys=True)
        sys.exit()
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ended))
"""


class Ended(NamedTuple):
    status: int
    stdout: str
    stderr: str
    folder: pathlib.Path


def commands(cases, folder, **environment):
    """Runs `cases`, each a module and its arguments; returns case -> how it ended."""
    forks = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(cases)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | environment,
        timeout=300,
    )
    assert forks.returncode == 0, forks.stderr
    return {
        case: Ended(
            status,
            (folder / f"{number}.stdout").read_text(),
            (folder / f"{number}.stderr").read_text(),
            folder / str(number),
        )
        for number, (case, status) in enumerate(zip(cases, json.loads(forks.stdout), strict=True))
    }


BROKEN = pathlib.Path(__file__).with_name("broken_recipe.py")
MISTAKES = [
    (("--config.no_such_key=1",), "no_such_key"),
    (("--config=configs/math_cot.py:llama2_8b",), "llama2_7b"),
    (("--config=no_such_file.py",), "no file no_such_file.py"),
    (("--config.seed=abc",), "abc"),
    ((f"--config={BROKEN}",), f"{BROKEN}:5: the recipe raised KeyError('deep')"),
    (("stage",), "unexpected argument 'stage'"),
    (("--config=configs/math_cot.py:tiny",), "--config.tokenizer must name"),
    (("--stages=nothing",), "no stage 'nothing'"),
    (("--coordinator=localhost:1", "--processes=2", "--process=2"), "--process=2"),
    (("--processes=2", "--process=1"), "need --coordinator=HOST:PORT"),
    (("--coordinator=localhost", "--processes=2"), "must be HOST:PORT"),
]
HELP = [
    ("run", "--config"),
    ("prepare", "--config"),
    ("generate", "--antiexpert"),
    ("score", "--predictions"),
    ("report", "--workdir"),
    ("convert", "--adapter"),
    ("fits", "--topology"),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    cases = [("run", *arguments) for arguments, _ in MISTAKES]
    cases += [(module, "--help") for module, _ in HELP]
    return commands(cases, tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize("arguments, message", MISTAKES)
def test_a_mistake_exits_with_2_and_one_line(arguments, message, ended):
    status, _, stderr, folder = ended["run", *arguments]
    assert status == 2, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert message in line and "Traceback" not in stderr
    assert folder.is_dir() and not (folder / "runs").exists()


@pytest.mark.parametrize("module, flag", HELP)
def test_help_names_the_flags_and_what_they_take(module, flag, ended):
    status, stdout, stderr, _ = ended[module, "--help"]
    assert status == 0 and "Traceback" not in stderr
    assert flag in stdout


def test_help_imports_neither_jax_nor_the_data_sets(tmp_path):
    program = (
        "import atexit, runpy, sys\n"
        "slow = {'jax', 'tensorflow_datasets'}\n"
        "atexit.register(lambda: print('imported:', *sorted(slow & set(sys.modules))))\n"
        "sys.argv = ['run', '--help']\n"
        "runpy.run_module('qalign_jax.run', run_name='__main__', alter_sys=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "--config" in ended.stdout
    assert ended.stdout.splitlines()[-1].split() == ["imported:"]


@pytest.mark.slow
def test_the_demo_shortened_runs_through_all_its_stages(tmp_path):
    command = [sys.executable, "-m", "qalign_jax.run", "--config.fast=True"]
    command.append(f"--config.cache_dir={tmp_path / 'cache'}")
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads(ended.stdout.splitlines()[-1])
    assert set(outcome["stages"].values()) == {"done"} and len(outcome["stages"]) == 9
    systems = {"base", "ralign", "qalign", "large", "large_proxy", "numbers_only"}
    assert outcome["systems"].keys() == systems
    assert "non_english" in outcome["systems"]["qalign"]["word_problems"]
    assert (tmp_path / outcome["report"]).read_text().count("large_proxy") > 1


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["code", "choice"])
def test_the_demos_in_code_and_in_multiple_choice_run_shortened(arg, tmp_path, bubblewrap):
    command = [sys.executable, "-m", "qalign_jax.run", f"--config=configs/demo.py:{arg}"]
    command += ["--config.fast=True", f"--config.cache_dir={tmp_path / 'cache'}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads(ended.stdout.splitlines()[-1])
    assert set(outcome["stages"].values()) == {"done"}
    [result] = outcome["systems"]["qalign"].values()
    assert result["versus"]["baseline"] == "ralign"
    assert ("likelihood" in result) == (arg == "choice")


@pytest.mark.slow
def test_an_installed_wheel_has_its_recipes_and_runs_from_any_folder(tmp_path):
    root = pathlib.Path(__file__).resolve().parents[1]
    source = tmp_path / "source"  # a copy: pip leaves its build beside the package
    for folder in ("qalign_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / folder, source / folder, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / file, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    wheeling = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(wheeling, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {"qalign_jax/configs/demo.py", "qalign_jax/reporting/page.html.jinja"}
    assert names | {"qalign_jax/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    recipes = ["--config=configs/math_cot.py:llama2_70b"], []
    cases = [("run", *recipe, "--stages=nothing") for recipe in recipes]
    (tmp_path / "any").mkdir()
    for case, ended in commands(cases, tmp_path / "any", PYTHONPATH=str(site)).items():
        assert "no stage 'nothing'" in ended.stderr, (case, ended)
