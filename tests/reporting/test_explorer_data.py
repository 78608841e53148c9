"""The data of the explorer of single questions, as the page holds it."""

import base64
import gzip
import json
import re

import pytest
from etils import epath

from qalign_jax.reporting import explorer
from tests.reporting.answers import (
    CODE,
    COUNT,
    QUESTIONS,
    REPLY,
    RIGHT,
    trace,
    write_answers,
    write_run,
)


def unpacked(section):
    """The index and the blocks of a section."""
    blocks = re.findall(r'<script type="application/octet-stream" id="[^"]*">([^<]*)<', section)
    index, *others = (json.loads(gzip.decompress(base64.b64decode(block))) for block in blocks)
    return index, others


def line_of(**fields):
    asked = {"id": "1", "question": "How many?", "answer": "7", "output": "7"}
    return {**asked, "prediction": 7.0, "correct": True, **fields}


def test_a_run_without_answers_has_no_section(tmp_path):
    (tmp_path / "evaluation").mkdir()
    write_answers(tmp_path / "evaluation" / "base" / "mgsm" / "en.jsonl")
    assert explorer.section(epath.Path(tmp_path), ["evaluation", "nowhere"]) == ""


def test_languages_with_the_same_questions_share_one_list_of_ids(tmp_path):
    stages = write_run(tmp_path)
    index, blocks = unpacked(explorer.section(epath.Path(tmp_path), stages))
    assert [(found["stage"], found["benchmark"]) for found in index["datasets"]] == [
        ("evaluation", "mgsm"), ("evaluation", "svamp"), ("evaluation", "xcsqa"), ("late", "mgsm"),
    ]  # fmt: skip
    mgsm = index["datasets"][0]
    assert mgsm["systems"] == list(RIGHT)
    assert {language["ids"] for language in mgsm["languages"]} == {0}
    assert index["ids"][0] == [f"test-{number}" for number in range(COUNT)]
    english = blocks[mgsm["languages"][2]["block"]]
    assert english["questions"][1] == QUESTIONS["en"].format(a=3, b=4)
    assert [cells[1]["correct"] for cells in english["cells"]] == [False, False, True, False]


def test_a_torn_line_and_an_answer_to_come_are_left_open(tmp_path):
    index, blocks = unpacked(explorer.section(epath.Path(tmp_path), write_run(tmp_path)))
    late = blocks[index["datasets"][-1]["languages"][0]["block"]]
    assert [cell and cell["correct"] for cell in late["cells"][0]] == [True, False, False]
    assert [cell and cell["correct"] for cell in late["cells"][1]] == [None, False, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"header": {}}\n{"id": "1", \n{"id": "2"}\n', "en.jsonl:2: not JSON"),
        ('{"header": {}}\n{"id": "1", "question": "?"}\n', "en.jsonl:2: .*expected an object with"),
        ('{"id": "1"}\n', "en.jsonl:1: .*expected an object with 'header'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, text, message):
    path = tmp_path / "evaluation" / "base" / "mgsm" / "en.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        explorer.section(epath.Path(tmp_path), ["evaluation"])


def test_a_trace_of_unequal_columns_is_refused(tmp_path):
    columns = trace(["7"]) | {"moved": []}
    write_answers(tmp_path / "stage" / "base" / "mgsm" / "en.jsonl", line_of(trace=columns))
    with pytest.raises(ValueError, match=r"en.jsonl:2: a trace's columns have"):
        explorer.section(epath.Path(tmp_path), ["stage"])


def traced(tmp_path, output, texts):
    """The columns of a traced answer, as the page has them."""
    line = line_of(output=output, trace=trace(texts))
    write_answers(tmp_path / "stage" / "base" / "mgsm" / "en.jsonl", line)
    index, blocks = unpacked(explorer.section(epath.Path(tmp_path), ["stage"]))
    return blocks[index["datasets"][0]["languages"][0]["traces"]][0]["0"]


def test_a_trace_has_the_bases_token_where_it_differs_and_thousandths(tmp_path):
    assert traced(tmp_path, "a b c", ["a", " b", " c"]) == [
        ["a", " b", " c"], [None, None, " pears"], [432] * 3, [900] * 3, [0, -250, 800],
    ]  # fmt: skip


def test_replies_to_programs_stand_between_the_traced_tokens(tmp_path):
    texts = ["He has 3.\n<llm-code>\nprint(3 + 4)", "\n</llm-code>\n", "The answer", " is 7."]
    columns = traced(tmp_path, CODE + REPLY + "The answer is 7.", texts)
    assert columns[0] == [texts[0], "\n</llm-code>", REPLY, *texts[2:]]
    assert columns[3] == [900, 900, None, 900, 900]
    assert columns[4] == [0, -250, None, 800, 0]


def test_a_trace_that_is_not_the_output_stays_as_it_is(tmp_path):
    assert traced(tmp_path, "something else", ["a", "b"])[0] == ["a", "b"]
