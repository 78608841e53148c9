"""Passwords and tokens reach no file, no log and no message of a run."""

import logging

import pytest

from qalign_jax import credentials, logs
from qalign_jax.recipe import parts
from qalign_jax.recipe.recipe import Recipe
from tests.commands import run_commands
from tests.conftest import SECRETS

URL = "https://someone:pa55word@example.org/data.jsonl"
SIGNED = "gs://bucket/data.jsonl?X-Goog-Signature=0123456789abcdef"
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWx"


@pytest.mark.slow
def test_a_run_writes_nothing_of_its_environment_s_secrets(demo):
    workdir = demo.folder / "runs" / "demo"
    files = [file for file in demo.folder.parent.rglob("demo*/**/*") if file.is_file()]
    names = {str(file.relative_to(demo.folder.parent)) for file in files}
    assert {"demo/runs/demo/config.json", "demo/runs/demo/report.html"} <= names
    assert any(name.startswith("demo_cache/packed") for name in names)
    said = (demo.stdout + demo.stderr).encode()
    for value in SECRETS.values():
        assert value.encode() not in said
        leaks = [str(file) for file in files if value.encode() in file.read_bytes()]
        assert not leaks, value
    assert (workdir / "config.json").stat().st_size > 1000


def test_a_recipe_with_a_password_or_token_is_refused_and_not_repeated(tmp_path):
    cases = [
        ("run", f"--config.vocabulary.data.answers.path={URL}", f"--config.tokenizer={TOKEN}",
         "--config.seed=x"),
        ("run", f"--config.evaluation.slots={TOKEN}"),
        ("run", f"--config={URL}"),
        ("run", f"--workdir={URL}"),
        ("run", f"--stages={TOKEN}"),
    ]  # fmt: skip
    ended = run_commands(cases, tmp_path)
    for case, (status, stdout, stderr, folder) in ended.items():
        assert status == 2 and stderr.startswith("error: "), case
        assert "pa55word" not in stdout + stderr and TOKEN not in stdout + stderr, case
        assert not list(folder.iterdir())
    told = ended[cases[0]].stderr.splitlines()
    assert [line.split(": ")[0] for line in told] == [
        "error", "  1. --config.seed=x; expected a whole number",
        "  2. tokenizer", "  3. vocabulary.data.answers.path",
    ]  # fmt: skip
    assert "holds a password or a token" in told[2] and "holds a password" in told[3]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("path", SIGNED, "train.data.rows.path: holds a password or a token"),
        ("api_key", "anything", "train.data.rows.api_key: holds a password or a token"),
        ("language", TOKEN, "train.data.rows.language: holds a password or a token"),
        ("path", "https://example.org/data.jsonl", "train.data.rows.path='https://example.org/"),
    ],
)
def test_keys_with_credentials_are_named(key, value, told, tmp_path):
    config = parts.recipe("one", ("train",), tokenizer=str(tmp_path))
    config.train = parts.training("random", {"rows": parts.source("jsonl")}, preset="tiny")
    with config.train.unlocked():
        config.train.data.rows[key] = value
    with pytest.raises(ValueError, match=f"^{told}"):
        Recipe(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (URL, "https://***@example.org/data.jsonl"),
        (SIGNED, "gs://bucket/data.jsonl?X-Goog-Signature=***"),
        (f"401 for {TOKEN}, https://a.org/?a=1&access_token=xyz&b=2",
         "401 for hf_***, https://a.org/?a=1&access_token=***&b=2"),
        ("gs://bucket/sk-translations/hf_model?generation=12", None),
        ("the answer is 3:4@5, a://b, AKIA", None),
    ],
)  # fmt: skip
def test_credentials_are_hidden_and_all_else_is_left(text, shown):
    assert credentials.hidden(text) == (shown or text)


def test_logs_hide_credentials():
    logger = logs.logging.get_absl_logger()
    for level in (logging.INFO, logging.WARNING):
        record = logger.makeRecord("absl", level, "data.py", 1, "reading %s", (URL,), None)
        assert logs._Formatter().format(record).endswith(" https://***@example.org/data.jsonl")
