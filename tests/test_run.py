"""The commands as a user meets them: mistakes, help, an installed wheel."""

import json
import os
import subprocess
import sys
import zipfile

import pytest


def command(*arguments, module="run", cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", f"qalign_jax.{module}", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.no_such_key=1"], "no_such_key"),
        (["--config=configs/math_cot.py:llama2_8b"], "llama2_7b"),
        (["--config=no_such_file.py"], "no file no_such_file.py"),
        (["--config.seed=abc"], "abc"),
        (["stage"], "unexpected argument 'stage'"),
        (["--config=configs/math_cot.py:tiny"], "--config.tokenizer must name"),
        (["--stages=nothing"], "no stage 'nothing'"),
        (["--coordinator=localhost:1", "--processes=2", "--process=2"], "--process=2"),
        (["--processes=2", "--process=1"], "need --coordinator=HOST:PORT"),
        (["--coordinator=localhost", "--processes=2"], "must be HOST:PORT"),
    ],
)
def test_a_mistake_exits_with_2_and_one_line(arguments, message, tmp_path):
    ended = command(*arguments, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert message in line and "Traceback" not in ended.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "module, flag",
    [
        ("run", "--config"),
        ("prepare", "--config"),
        ("generate", "--antiexpert"),
        ("score", "--predictions"),
        ("report", "--workdir"),
        ("convert", "--adapter"),
        ("fits", "--topology"),
    ],
)
def test_help_names_the_flags_and_what_they_take(module, flag, tmp_path):
    ended = command("--help", module=module, cwd=tmp_path)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    assert flag in ended.stdout


@pytest.mark.slow
def test_the_demo_shortened_runs_through_all_its_stages(tmp_path):
    ended = command("--config.fast=True", f"--config.cache_dir={tmp_path / 'cache'}", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads(ended.stdout.splitlines()[-1])
    assert set(outcome["stages"].values()) == {"done"} and len(outcome["stages"]) == 7
    systems = {"base", "ralign", "qalign", "large", "large_proxy", "numbers_only"}
    assert outcome["systems"].keys() == systems
    assert "non_english" in outcome["systems"]["qalign"]["word_problems"]
    assert (tmp_path / outcome["report"]).read_text().count("large_proxy") > 1


@pytest.mark.slow
def test_an_installed_wheel_has_its_recipes_and_runs_from_any_folder(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, root], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"qalign_jax/configs/demo.py", "qalign_jax/reporting/page.html.jinja"} <= set(names)
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    for arguments in (["--config=configs/math_cot.py:llama2_70b"], []):
        ended = command(
            *arguments, "--stages=nothing", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")
        )
        assert "no stage 'nothing'" in ended.stderr, ended.stderr
