"""The score command, in its own process and as a function."""

import json
import subprocess
import sys

import pytest

from qalign_jax.decoding.system import Answer
from qalign_jax.evaluation import benchmarks
from qalign_jax.evaluation.predictions import score
from qalign_jax.evaluation.runner import evaluate


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "qalign_jax.score", *arguments], capture_output=True, text=True
    )


ROWS = [
    {"output": "The answer is 3,5.", "answer": "3.5", "language": "de"},
    {"output": "The answer is -7", "answer": "7", "language": "de"},
    {"output": "114,200", "answer": "114,200", "language": "en"},
    {"output": "none", "answer": 0, "language": "en"},
]


def test_the_last_line_is_the_scores_and_the_table_goes_to_stderr(tmp_path):
    path = write(tmp_path / "p.jsonl", ROWS)
    done = command("--benchmark=mgsm", f"--predictions={path}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "benchmark": "mgsm",
        "n": 4,
        "accuracy": {"de": 50.0, "en": 100.0, "average": 75.0, "non_english": 50.0},
        "sound": {"de": 50.0, "en": 50.0, "average": 50.0, "non_english": 50.0},
        "intervals": {
            "de": [9.45, 90.55],
            "en": [34.24, 100.0],
            "average": [50.0, 100.0],
            "non_english": [0.0, 100.0],
        },
    }
    assert "published reader" in done.stderr and "non-English" in done.stderr


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    done = command("--benchmark=mgsm", f"--predictions={tmp_path / 'none.jsonl'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "there is no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert command("--benchmark=mgsm").returncode == 2


def test_help_says_what_the_file_holds():
    done = command("--help")
    assert "--predictions" in done.stdout and "JSON Lines" in done.stdout


def test_without_languages_there_is_only_the_average(tmp_path):
    rows = [{"output": "5", "answer": "5"}, {"output": "6", "answer": 5.0}]
    result = score("msvamp", write(tmp_path / "p.jsonl", rows))
    assert result["accuracy"] == result["sound"] == {"average": 50.0}
    assert result["n"] == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"p\.jsonl:2: not JSON"),
        ("[1]", r"p\.jsonl:2: expected an object"),
        ({"output": "5", "language": "de"}, r"p\.jsonl:2: no 'answer'"),
        ({"answer": "5", "language": "de"}, r"p\.jsonl:2: no 'output'"),
        ({"output": 5, "answer": "5", "language": "de"}, r"p\.jsonl:2: output must be"),
        ({"output": "5", "answer": None, "language": "de"}, r"p\.jsonl:2: answer must be"),
        ({"output": "5", "answer": "five", "language": "de"}, r"p\.jsonl:2.*holds no number"),
        ({"output": "5", "answer": "5", "language": "xx"}, r"p\.jsonl:2: mgsm has no language"),
        ({"output": "5", "answer": "5"}, r"p\.jsonl:2: no language here"),
    ],
)
def test_bad_lines_are_named(tmp_path, row, message):
    path = write(tmp_path / "p.jsonl", [ROWS[0], row])
    with pytest.raises(ValueError, match=message):
        score("mgsm", path)


def test_an_empty_file_and_a_wrong_encoding_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no predictions"):
        score("mgsm", write(tmp_path / "p.jsonl", []))
    (tmp_path / "l.jsonl").write_bytes(b'{"output": "\xe9", "answer": "5"}\n')
    with pytest.raises(ValueError, match=r"l\.jsonl:1: not UTF-8"):
        score("mgsm", tmp_path / "l.jsonl")


def test_a_runs_own_answer_file_scores_as_the_run_did(tmp_path):
    problems = [
        {"id": str(i), "language": "de", "question": str(i), "answer": "4"} for i in range(3, 6)
    ]
    result = evaluate(
        "s",
        benchmarks.get("mgsm"),
        problems,
        lambda prompts, limit: (Answer(i, f"Es sind {i + 3}", [5]) for i in range(len(prompts))),
        "short",
        tmp_path,
        {},
    ).result
    scored = score("mgsm", tmp_path / "s" / "mgsm" / "de.jsonl")
    assert scored["accuracy"]["average"] == result["average"] == 33.33


def test_choices_are_the_lines_own_or_the_benchmarks(tmp_path):
    lines = [
        {"output": "neutral", "answer": "neutral", "language": "de"},
        {"output": "It is neutral.", "answer": "neutral", "language": "en"},
        {"output": "yes", "answer": "yes", "language": "en", "choices": ["yes", "no"]},
    ]
    scored = score("xnli", write(tmp_path / "p.jsonl", lines))
    assert (scored["accuracy"]["en"], scored["sound"]["en"]) == (50.0, 100.0)
    for choices, message in (("AB", "must be a list"), (["A"], "'C' is none of the choices")):
        path = write(tmp_path / "q.jsonl", [{"output": "C", "answer": "C", "choices": choices}])
        with pytest.raises(ValueError, match=f"q.jsonl:1: .*{message}"):
            score("xcsqa", path)
