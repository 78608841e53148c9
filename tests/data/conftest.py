"""A small sentencepiece tokenizer and files written by hand in the published formats."""

import json

import pytest

from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece

QUESTIONS = {
    "en": [
        "Tom has 3 apples and buys 4 more. How many apples does he have?",
        "A box holds 12 pens. How many pens do 5 boxes hold?",
        "Mia reads 7 pages a day. How many pages does she read in a week?",
    ],
    "de": [
        "Tom hat 3 Äpfel und kauft 4 weitere. Wie viele Äpfel hat er?",
        "Eine Kiste fasst 12 Stifte. Wie viele Stifte fassen 5 Kisten?",
        "Mia liest 7 Seiten am Tag. Wie viele Seiten liest sie in einer Woche?",
    ],
    "zh": [
        "汤姆有 3 个苹果，又买了 4 个。他有多少个苹果？",
        "一盒装 12 支笔。5 盒装多少支笔？",
        "米娅每天读 7 页。她一周读多少页？",
    ],
}


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return path


def write_jsonl(path, rows):
    return write_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])


@pytest.fixture(scope="session")
def texts():
    steps = [f"{a} + {b} = {a + b}. The answer is {a + b}." for a in range(12) for b in range(12)]
    return [text for side in QUESTIONS.values() for text in side] * 3 + steps


@pytest.fixture(scope="session")
def model_file(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(texts, 420, path)
    return path


@pytest.fixture(scope="session")
def tokenizer(model_file):
    return load_tokenizer(model_file)


@pytest.fixture
def pairs_folder(tmp_path):
    """de-en and zh-en complete; bn-en with its English side alone, as in the published folder."""
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
