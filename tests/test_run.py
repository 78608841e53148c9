"""The commands in their own processes: mistakes, help, an installed wheel."""

import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import qalign_jax
from qalign_jax.configs.demo import get_config
from tests.commands import run_commands

BROKEN = pathlib.Path(__file__).with_name("broken_recipe.py")
MISTAKES = [
    (("--config.no_such_key=1",), "no_such_key"),
    (("--config=configs/math_cot.py:llama2_8b",), "llama2_7b"),
    (("--config=no_such_file.py",), "no file no_such_file.py"),
    (("--config.seed=abc",), "abc"),
    ((f"--config={BROKEN}",), f"{BROKEN}:5: the recipe raised KeyError('deep')"),
    (("stage",), "unexpected argument 'stage'"),
    (("--config.tokenizer=",), "--config.tokenizer must name"),
    (("--stages=nothing",), "no stage 'nothing'"),
    (("--coordinator=localhost:1", "--processes=2", "--process=2"), "--process=2"),
    (("--processes=2", "--process=1"), "need --coordinator=HOST:PORT"),
    (("--coordinator=localhost", "--processes=2"), "must be HOST:PORT"),
]
SEVERAL = (
    "--config.seed=abc", "--config.fast=maybe", "--config.nope=1", "--config.pretraining.lr=-1",
    "--config.evaluation.slots=-1", "--config.mesh=fsdp:x",
)  # fmt: skip
TWICE = ("--config.stages=one", "--config.stages=two")
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
    cases += [("run", *SEVERAL), ("run", *TWICE)]
    cases += [(module, "--help") for module, _ in HELP]
    return run_commands(cases, tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize("arguments, message", MISTAKES)
def test_a_mistake_exits_with_2_and_one_line(arguments, message, ended):
    status, _, stderr, folder = ended["run", *arguments]
    assert status == 2, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert message in stderr[stderr.index(line) :] and "Traceback" not in stderr
    assert folder.is_dir() and not (folder / "runs").exists()


def test_several_mistakes_exit_with_2_and_a_line_each(ended):
    status, stdout, stderr, folder = ended["run", *SEVERAL]
    assert (status, stdout) == (2, "") and not list(folder.iterdir())
    assert stderr.splitlines() == [
        "error: 6 mistakes",
        "  1. --config.seed=abc; expected a whole number",
        "  2. --config.fast=maybe; expected True or False",
        "  3. --config.nope=1: the recipe has no such key (see its file)",
        "  4. mesh: mesh 'fsdp:x': bad size 'x' of fsdp; expected something like "
        "'data:1,fsdp:-1,tensor:2'",
        "  5. pretraining.lr=-1.0; expected at least 0",
        "  6. evaluation.slots=-1; expected at least 0",
    ]


def test_of_an_override_that_is_given_twice_the_last_counts(ended):
    status, _, stderr, _ = ended["run", *TWICE]
    assert status == 2 and "no stage 'two' is described" in stderr and "one" not in stderr.split()


@pytest.mark.parametrize("module, flag", HELP)
def test_help_fits_a_screen_and_ends_with_an_example(module, flag, ended):
    status, stdout, stderr, _ = ended[module, "--help"]
    assert status == 0 and "Traceback" not in stderr
    lines = stdout.splitlines()
    assert lines[0] == f"usage: python -m qalign_jax.{module} [--flag=value ...]"
    assert any(line.split()[:1] == [flag] for line in lines)
    assert len(lines) <= 40
    examples = lines[lines.index("for example") + 1 :]
    assert examples and examples[0].startswith(f"    python -m qalign_jax.{module} --")


def test_help_tells_defaults_as_values_and_what_is_required(ended):
    lines = ended["generate", "--help"].stdout.splitlines()
    assert "  --checkpoint      The model: a DIR or BASE+ADAPTER. (required)" in lines
    assert "  --max_new_tokens  The most tokens of an answer. (default: 512)" in lines
    assert "  --temperature     0 is greedy. (default: 0.0)" in lines
    told = "".join(found.stdout for case, found in ended.items() if "--help" in case)
    assert "None" not in told and "''" not in told and "default: )" not in told


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
@pytest.mark.parametrize("arg", ["code", "choice"])
def test_the_demos_in_code_and_in_multiple_choice_run_shortened(arg, tmp_path, bubblewrap):
    command = [sys.executable, "-m", "qalign_jax.run", f"--config=configs/demo.py:{arg}"]
    command += ["--config.fast=True", "--config.evaluation.slots=16"]
    command.append(f"--config.cache_dir={tmp_path / 'cache'}")
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads(ended.stdout.splitlines()[-1])
    assert set(outcome["stages"].values()) == {"done"}
    [result] = outcome["systems"]["qalign"].values()
    assert result["versus"]["baseline"] == "ralign"
    assert ("likelihood" in result) == (arg == "choice")


@pytest.mark.slow
def test_the_demo_with_adapters_goes_on_from_one_without(demo, tmp_path):
    workdir = tmp_path / "demo"
    without = shutil.ignore_patterns("evaluation")
    shutil.copytree(demo.folder / "runs" / "demo", workdir, ignore=without)
    config = get_config("adapter")
    systems = {"adapter_qalign": config.evaluation.systems.adapter_qalign}
    config.evaluation.systems, config.evaluation.baseline = systems, ""
    config.evaluation.benchmarks.word_problems.languages = ("de", "en")
    changes = {"fast": True, "evaluation.slots": 8}
    changes["cache_dir"] = json.loads((workdir / "config.json").read_text())["cache_dir"]
    stages = ["adapter_question_alignment", "adapter_response_alignment"]
    outcome = qalign_jax.run(config, workdir, [*stages, "evaluation"], overrides=changes)
    assert set(outcome["systems"]) == {"adapter_qalign", "numbers_only"}

    def losses(stage):
        lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    for name in stages:
        part = json.loads((workdir / name / "model.json").read_text())["part"]
        assert (part["adapter"]["rank"], part["base"], part["int8"]) == (8, "../pretraining", False)
    # a new adapter adds nothing: the first loss is the base's
    whole, own = losses("question_alignment"), losses("adapter_question_alignment")
    assert own[0] == pytest.approx(whole[0], rel=1e-5)
    assert own[-1] != pytest.approx(whole[-1], rel=1e-3)
    # stage II begins with the adapter of stage I, not with the base alone
    assert losses("adapter_response_alignment")[0] != pytest.approx(
        losses("response_alignment_only")[0], rel=1e-3
    )
    for name in stages:
        int8 = config[name.replace("adapter", "adapter_int8")].to_dict()
        assert int8.pop("weights_dtype") == "int8"
        assert int8.pop("init") == config[name].init.replace("adapter", "adapter_int8")
        assert int8.items() <= config[name].to_dict().items()


@pytest.mark.release
def test_the_oldest_versions_that_setup_py_claims_pass_tests_and_run_the_demo():
    root = pathlib.Path(__file__).resolve().parents[1]
    subprocess.run([root / ".ci/oldest_versions"], check=True)


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
    for case, ended in run_commands(cases, tmp_path / "any", PYTHONPATH=str(site)).items():
        assert "no stage 'nothing'" in ended.stderr, (case, ended)
