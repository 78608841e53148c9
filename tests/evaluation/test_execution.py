"""Code that answers hold: run while they are decoded, and from finished texts."""

import json

import pytest

from qalign_jax.decoding.system import Answer
from qalign_jax.evaluation import benchmarks
from qalign_jax.evaluation.execution import Execution
from qalign_jax.evaluation.predictions import score
from qalign_jax.evaluation.runner import evaluate
from tests.files import write_jsonl

pytestmark = pytest.mark.usefixtures("bubblewrap")
BLOCK = "<llm-code>\n{}\n</llm-code>"
SOLUTION = "def solution():\n    return {}\n"


@pytest.fixture(scope="module")
def execution(bubblewrap):
    with Execution(workers=2) as running:
        yield running


class Solving:
    """Generates a block for the number in the braces, then a box with what it printed."""

    def __init__(self, code):
        self.code, self.prompts = code, []

    def __call__(self, prompts, max_new_tokens, turns=None):
        self.prompts = list(prompts)
        for index, prompt in enumerate(prompts):
            number = int(prompt.split("{")[1].split("}")[0])
            text = BLOCK.format(self.code.format(number))
            reply = turns and turns.reply(index, text)
            output = reply and reply.result()
            if output:
                text += f"{output}It is \\boxed{{{output.splitlines()[2]}}}."
            yield Answer(index, text, [5] * 9)


def problems(count=3):
    return [
        {"id": str(i), "language": language, "question": f"{{{i}}}", "answer": str(2 * i)}
        for language in ("de", "en")
        for i in range(1, count + 1)
    ]


def run(directory, generate, execution):
    benchmark = benchmarks.get("mgsm", "code")
    return evaluate(
        "s", benchmark, problems(), generate, "short", directory, {}, execution=execution
    ).result


def rows(directory, language):
    path = directory / "s" / "mgsm" / f"{language}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_answer_goes_on_with_what_its_code_printed(tmp_path, execution):
    result = run(tmp_path, Solving("x = {}\n2 * x"), execution)
    assert result["average"] == 100.0 and result["executions"] == {"ok": 100.0}
    header, first, *_ = rows(tmp_path, "de")
    assert header["header"]["executions"] == 3
    assert first["executions"] == [{"status": "ok", "output": "2\n"}]
    assert first["output"].endswith("<llm-code-output>\n2\n</llm-code-output>\nIt is \\boxed{2}.")
    again = Solving("")
    assert run(tmp_path, again, execution) == result and again.prompts == []


def test_code_that_fails_or_prints_nothing_ends_the_answer_and_is_kept(tmp_path, execution):
    result = run(tmp_path, Solving("print(2 * {0})\nx = 1 / ({0} - 2)"), execution)
    assert result["average"] == 66.67 and result["executions"] == {"error": 33.33, "ok": 66.67}
    assert rows(tmp_path, "en")[2]["prediction"] is None  # though it had printed the answer
    assert "ZeroDivisionError" in rows(tmp_path, "en")[2]["executions"][0]["output"]
    assert run(tmp_path / "quiet", Solving("x = {}"), execution)["executions"] == {"ok": 100.0}
    assert rows(tmp_path / "quiet", "en")[1]["prediction"] is None


def test_without_a_sandbox_no_code_runs(tmp_path):
    result = run(tmp_path, Solving("x = {}\n2 * x"), None)
    assert result["average"] == 0.0 and "executions" not in result


def test_a_later_block_knows_what_the_earlier_ones_of_its_solution_left(execution):
    first = BLOCK.format("x = 20\nprint(x)")
    output = execution.turns.reply(7, first).result()
    assert output == "\n<llm-code-output>\n20\n</llm-code-output>\n"
    again = execution.turns.reply(7, first + output + BLOCK.format("x + 1"))
    assert "\n21\n" in again.result()
    assert [each["output"] for each in execution.take(7)] == ["20\n", "21\n"]


def test_blocks_share_their_state_and_solutions_do_not(execution):
    first = BLOCK.format("x = 20")
    texts = [first + BLOCK.format("print(x + 1)"), BLOCK.format("print(x)")]
    found = list(execution.solve(texts))
    assert [each["value"] for each in found] == ["21", None]
    assert [outcome["status"] for outcome in found[0]["executions"]] == ["ok", "ok"]
    assert "NameError" in found[1]["executions"][0]["output"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"So\n{SOLUTION.format('7 * 6.5')}\nDone.", "45.5"),
        (f"```python\n{SOLUTION.format(8)}```", "8"),
        (r"```python\nprint(2)\n```", None),
        ("```python\nprint(1)\nprint(2)\n```", "2"),
        ("```python\nprint(2)\n```\n```output\n3\n```\nIt is $\\boxed{4}$.", "4"),
        ("<llm-code>\nprint(2)", None),
        (r"No code: \boxed{9}", "9"),
        ("```python\nwhile True pass\n```", None),
        ("So \\boxed{5}.\n```python\n1 / 0\n```\nIt is \\boxed{5}.", None),
    ],
)
def test_a_finished_solution_has_the_value_of_its_program(execution, text, value):
    [found] = execution.solve([text])
    assert found["value"] == value


@pytest.mark.parametrize(
    ("gold", "prediction", "equal"),
    [
        (r"\sqrt{39}", "sqrt(39)", True),
        ("x+1", "1 + x", True),
        (r"5-2\sqrt{3}", r"\sqrt{37 - 20\sqrt{3}}", True),
        ("18", r"6 \cdot 3", True),
        ("18", "x", False),
        ("18", "__import__('os').getpid()", False),
        ("18", "')\nprint(True)\n('", False),
    ],
)
def test_algebra_decides_what_text_and_numbers_do_not(execution, gold, prediction, equal):
    assert execution.equal({"answer": gold, "prediction": prediction}) is equal


def test_score_runs_the_programs_of_outputs(tmp_path, bubblewrap):
    lines = [
        {"id": "1", "language": "de", "answer": "6", "output": SOLUTION.format("2 * 3")},
        {"id": "2", "language": "de", "answer": 8, "output": "```python\nprint(800)\n```"},
        {"id": "1", "language": "en", "answer": "6", "output": "<llm-code>\nprint(6)"},
        {"id": "2", "language": "en", "answer": "8", "output": "```python\nexit()\n```"},
    ]
    scored = score("mgsm", write_jsonl(tmp_path / "p.jsonl", lines), execute=True)
    assert scored["accuracy"] == {"de": 100.0, "en": 0.0, "average": 50.0, "non_english": 100.0}
    assert scored["sound"]["de"] == 50.0
    assert scored["executions"] == {"error": 50.0, "ok": 50.0}
    with pytest.raises(ValueError, match="answers of xnli are choices"):
        score("xnli", tmp_path / "p.jsonl", execute=True)


def test_score_does_not_believe_an_answer_whose_program_failed(tmp_path, bubblewrap):
    lines = [
        {"answer": "5", "output": "So \\boxed{5}.\n```python\n1 / 0\n```"},
        {"answer": "5", "output": "\\boxed{5} <llm-code>\nprint(5)"},
        {"answer": r"\sqrt{8}", "output": r"\boxed{2\sqrt{2}}"},
        {"answer": "5", "output": "\\boxed{4} <llm-code>\nprint(5)\n</llm-code>"},
    ]
    scored = score("mgsm", write_jsonl(tmp_path / "p.jsonl", lines), execute=True)
    assert scored["accuracy"] == {"average": 50.0}
