"""Files written by hand in the published formats."""

import pytest

from tests.files import QUESTIONS, write_jsonl, write_lines


@pytest.fixture
def pairs_folder(tmp_path):
    """de-en and zh-en with both sides; bn-en with English alone, as in the published folder."""
    folder = tmp_path / "pairs"
    for language in ("de", "zh"):
        write_lines(folder / f"{language}-en" / f"train.{language}", QUESTIONS[language])
        write_lines(folder / f"{language}-en" / "train.en", QUESTIONS["en"])
    write_lines(folder / "bn-en" / "train.en", QUESTIONS["en"])
    return folder


@pytest.fixture
def own_data(tmp_path):
    """Forty rows of {instruction, response} of many lengths."""
    rows = [
        {
            "instruction": f"How much is {i} + {i}?" + " Think of apples." * (i % 4),
            "response": f"{i} + {i} = {2 * i}." * (1 + i % 3) + f" The answer is {2 * i}.",
        }
        for i in range(40)
    ]
    return write_jsonl(tmp_path / "own.jsonl", rows)
