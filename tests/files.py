"""A few questions in three languages, and functions that write files."""

import json

from qalign_jax.evaluation import benchmarks

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


def builder_of(name):
    """The builder of a benchmark; None for a data set, which is found by its name."""
    return benchmarks.get(name).builder if name in benchmarks.NAMES else None
