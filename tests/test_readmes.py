"""The READMEs are true: their links lead somewhere, and each of their commands runs.

Commands run small: names of files that a reader has are replaced by tiny ones, and training by two
steps. What stands in a block is executed by bash, where every program records how it was called.
"""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import urllib.parse

import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

from tests import hugging_face
from tests.commands import run_commands
from tests.files import QUESTIONS, write_jsonl
from tests.recipe.test_scenarios import LANGUAGES, write_math

ROOT = pathlib.Path(__file__).resolve().parents[1]
READMES = sorted(
    path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts)
)
MARKDOWN = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=6)

# These install, download, lint, or need a daemon; CI calls most of them as they stand.
ELSEWHERE = ("pip", "hf", "ruff", "pyright", "pre-commit", "docker", "jupytext")
PROGRAMS = ("python", "pytest", *ELSEWHERE)
RECORD = 'printf "%s\\0" "$@" >> "$RECORDED"; printf "\\n\\0" >> "$RECORDED"'


@functools.cache
def parsed(path):
    return MARKDOWN.parse(path.read_text(encoding="utf-8"))


def anchors(path):
    return {token.attrGet("id") for token in parsed(path) if token.type == "heading_open"}


def links(path):
    for token in parsed(path):
        for child in token.children or ():
            if child.type in ("link_open", "image"):
                yield child.attrGet("href") or child.attrGet("src")


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_project_leads_to_a_file_and_a_heading(path):
    for link in map(urllib.parse.urlsplit, links(path)):
        if link.scheme:
            continue
        target = (path.parent / urllib.parse.unquote(link.path)).resolve() if link.path else path
        assert target.exists(), link.geturl()
        if link.fragment:
            assert link.fragment in anchors(target), link.geturl()


def commands(path, folder):
    """The commands in a README's bash blocks, each a tuple of words, in order.

    What the blocks write themselves goes into `folder`.
    """
    scripts = sorted(str(each.relative_to(ROOT)) for each in (ROOT / "launch").rglob("*.sh"))
    functions = [f'{name}() {{ set -- {name} "$@"; {RECORD}; }}' for name in (*PROGRAMS, *scripts)]
    blocks = [token.content for token in parsed(path) if token.info == "bash"]
    record = pathlib.Path(folder, "recorded")
    record.write_text("")
    subprocess.run(
        [shutil.which("bash"), "-euc", "\n".join([*functions, *blocks])],
        check=True, cwd=folder, env={"PATH": "", "RECORDED": str(record)},
    )  # fmt: skip
    calls = record.read_text().split("\n\0")[:-1]
    return [tuple(call.split("\0")[:-1]) for call in calls]


DEMO = ROOT / "README.md", ("python", "-m", "qalign_jax.run")
with tempfile.TemporaryDirectory() as _folder:
    COMMANDS = {path: commands(path, _folder) for path in READMES}
PYTHON = {
    path: [token.content for token in parsed(path) if token.info == "python"] for path in READMES
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_file, demo):
    """A working directory with the demo, tiny data, a tiny model in the Hugging Face format."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(demo.folder / "runs", folder / "runs")
    for path in COMMANDS:
        commands(path, folder)
    write_math(folder / "data")
    solved = [{"question": question, "answer": "3 + 4 = 7\n#### 7"} for question in QUESTIONS["en"]]
    write_jsonl(folder / "data" / "gsm8k.jsonl", solved)
    model = folder / "model"
    hugging_face.save("llama2_7b", model, model_file)
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 1024}
    (model / "config.json").write_text(json.dumps(config))
    return folder


DATA = {"question_pairs": "data/pairs", "responses": "data/train.jsonl", "mgsm": "data/mgsm",
        "msvamp": "data/msvamp"}  # fmt: skip
STAGES = ("question_alignment", "response_alignment", "response_alignment_only")


def test_every_command_is_one_that_is_tested_here_or_named():
    programs = {words[0] for calls in COMMANDS.values() for words in calls}
    scripts = {program for program in programs if program.startswith("launch/")}
    assert programs - scripts <= set(PROGRAMS)
    assert sum(map(len, COMMANDS.values())) > 25  # commands are found at all


def small(module, words):
    """A command as a reader has it, on tiny files and with few steps."""
    words = [word.replace("gs://bucket", "bucket") for word in words if word != "..."]
    config = next((word for word in words if word.startswith("--config=")), "")
    if module == "fits":
        model = re.sub(":.*", ":tiny", config)
        return [model, "--config.mesh=fsdp:4x4", *(word for word in words if word != config)]
    if not config:
        return [*words, "--slots=8"] if module == "generate" else words
    words = [word for word in words if not word.startswith(("--coordinator", "--process"))]
    words = [re.sub("(config.(base|large|expert|antiexpert))=.*", r"\1=model", w) for w in words]
    words = [re.sub("tokenizer=.*", "tokenizer=model/tokenizer.model", word) for word in words]
    words = [word for word in words if not word.startswith("--config.paths.")]
    trained = () if "proxy_tuning" in config else STAGES
    names = DATA if trained else ("mgsm", "msvamp")
    words += [f"--config.paths.{name}={DATA[name]}" for name in names]
    if "--config.responses=gsm8k" in words:
        words.append("--config.paths.responses=data/gsm8k.jsonl")
    for name in trained:
        words += [f"--config.{name}.{key}" for key in ("steps=2", "rows=2", "length=512")]
    for benchmark in ("mgsm", "msvamp"):
        key = f"--config.evaluation.benchmarks.{benchmark}"
        words.append(f"{key}.max_new_tokens=8")
        if not any(word.startswith(f"{key}.languages") for word in words):
            words.append(f"{key}.languages={(*LANGUAGES, 'en')}")
    if trained:
        words.append(f"--config.representations.questions.languages={(*LANGUAGES, 'en')}")
        words.append("--config.micro_batches=1")
    shared = ("mesh=fsdp:-1", "evaluation.mesh=", "evaluation.slots=8", "cache_dir=cache")
    return [*words, *(f"--config.{key}" for key in shared)]


@pytest.fixture(scope="module")
def ended(folder, demo):
    """(README, words of a command, or ("-c", code)) -> how it ended, run in this order."""
    asked = {}
    for path, calls in COMMANDS.items():
        for words in calls:
            if (path, words) == DEMO:
                continue
            if words[:2] == ("python", "-m") and words[2].startswith("qalign_jax."):
                module = words[2].removeprefix("qalign_jax.")
                asked[path, words] = (module, *small(module, words[3:]))
        for code in PYTHON[path]:
            asked[path, ("-c", code)] = ("-c", code)
    cases = list(dict.fromkeys(asked.values()))
    one_device = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    found = run_commands(cases, folder, together=".", HOME=str(folder), XLA_FLAGS=one_device)
    return {key: found[case] for key, case in asked.items()} | {DEMO: demo}


def called(program):
    return [
        pytest.param(path, words, id=f"{path.relative_to(ROOT)}: {' '.join(words)}"[:100])
        for path, calls in COMMANDS.items()
        for words in calls
        if words[0] == program
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path, words", called("python"))
def test_every_command_of_the_package_runs(path, words, ended):
    if words[2].startswith("qalign_jax."):
        status, stdout, stderr, _ = ended[path, words]
        assert status == 0, stderr
        assert isinstance(json.loads(stdout.splitlines()[-1]), dict)
    else:  # a benchmark
        assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists()


@pytest.mark.slow
def test_the_first_command_runs_the_whole_demo_and_says_what_next(ended):
    _, stdout, stderr, folder = ended[DEMO]
    outcome = json.loads(stdout.splitlines()[-1])
    assert set(outcome["stages"].values()) == {"done"} and len(outcome["stages"]) == 9
    systems = {"base", "ralign", "qalign", "large", "large_proxy", "numbers_only"}
    assert outcome["systems"].keys() == systems
    assert "non_english" in outcome["systems"]["qalign"]["word_problems"]
    assert (folder / outcome["report"]).read_text().count("large_proxy") > 1
    page, answers, ask, export = stderr.splitlines()[-4:]
    assert outcome["report"] in page and "runs/demo/evaluation/" in answers
    tuned = "runs/demo/response_alignment "
    assert f"--checkpoint={tuned}" in ask and f"--source={tuned}" in export


@pytest.mark.slow
def test_every_block_of_python_runs(ended):
    blocks = {key: found for key, found in ended.items() if key[1][0] == "-c"}
    assert len(blocks) >= 3
    for (path, (_, code)), (status, _, stderr, _) in blocks.items():
        assert status == 0, f"{path}\n{code}\n{stderr}"


@pytest.mark.parametrize("path, words", called("pytest"))
def test_every_pytest_command_names_folders_and_markers_that_are_there(path, words, pytestconfig):
    options = pytestconfig._parser.parse_known_args([*words[1:], "--strict-markers"])
    markers = {line.split(":")[0] for line in pytestconfig.getini("markers")}
    assert set((options.markexpr or "").split()) <= {"not", *markers}
    assert all((ROOT / name).exists() for name in options.file_or_dir)


def launched():
    return [
        pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)}"[:100])
        for path, calls in COMMANDS.items()
        for words in calls
        if words[0].startswith("launch/")
    ]


@pytest.mark.parametrize("words", launched())
def test_every_launch_script_prints_its_commands_in_a_dry_run(words, tmp_path):
    script, *arguments = (word for word in words if word != "...")
    line = ["bash", ROOT / script, *arguments, "--dry-run"]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    programs = {"gcloud", "kubectl", "xpk"}
    assert programs & {line.split(" ")[0] for line in ended.stdout.splitlines()}, ended.stdout
