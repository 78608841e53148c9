"""The commands as a user meets them: mistakes, help, an installed wheel, several processes."""

import json
import os
import socket
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


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_does(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import pathlib\n"
        "from tests.test_recipe import make_config\n"
        "def get_config():\n"
        f"    config = make_config(pathlib.Path({str(tmp_path)!r}))\n"
        "    config.base.steps = config.tuned.steps = 6\n"
        "    return config\n"
    )

    def start(workdir, devices, *more):
        arguments = [f"--config={recipe}", f"--workdir={tmp_path / workdir}", *more]
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
        return subprocess.Popen(
            [sys.executable, "-m", "qalign_jax.run", *arguments],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    cluster = [f"--coordinator=localhost:{port}", "--processes=2"]
    processes = [start("two", 4, *cluster, f"--process={i}") for i in range(2)]
    processes.append(start("one", 8))
    outputs = [process.communicate(timeout=400) for process in processes]
    for process, (_, stderr) in zip(processes, outputs):
        assert process.returncode == 0, stderr
    two, one = (json.loads(outputs[i][0].splitlines()[-1]) for i in (0, 2))
    assert two["stages"] == one["stages"] and set(one["stages"].values()) == {"done"}
    assert two["systems"] == one["systems"]

    def losses(workdir, stage):
        lines = (tmp_path / workdir / stage / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    for stage in ("base", "tuned"):
        assert losses("two", stage) == pytest.approx(losses("one", stage), rel=1e-5)
        assert len(losses("two", stage)) == 6
