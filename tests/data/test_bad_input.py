"""Errors of input name the file, the line and the remedy."""

import json

import pytest

from qalign_jax.data import packing
from qalign_jax.data.datasets import load_examples

GOOD = '{"instruction": "a", "response": "b"}\n'
# case: name of the builder, files to write, options of the source, pattern of the message
BAD = {
    "a missing path": ("jsonl", {}, {"path": "nowhere.jsonl"}, r"nowhere\.jsonl does not exist"),
    "no path": ("jsonl", {}, {"path": ""}, "without a path"),
    "malformed JSON": ("jsonl", {"d": GOOD + '{"instruction": \n'}, {}, r"d:2: not JSON"),
    "a malformed list": ("metamath", {"d": '[{"query": "a",\n}]'}, {}, r"d:2: not JSON"),
    "no object": ("jsonl", {"d": GOOD + '"text"\n'}, {}, "d:2: expected a JSON object"),
    "Latin 1": ("jsonl", {"d": GOOD.encode() + b'{"a": "\xe4"}'}, {}, r"d:2: not UTF-8.*iconv"),
    "a missing key": ("jsonl", {"d": '{"question": "a"}\n'}, {}, r"d:1: no key.*'question'"),
    "a number": ("jsonl", {"d": '{"response": null, "instruction": "a"}'}, {}, r"d:1: 'response'"),
    "an empty response": (
        "jsonl",
        {"d": '{"response": " ", "instruction": "a"}'},
        {},
        "d:1.*empty",
    ),
    "an empty file": ("jsonl", {"d": "\n"}, {}, r"/d holds no examples"),
    "an empty list": ("metamath", {"d": "[]"}, {}, r"/d holds no examples"),
    "an unknown language": ("jsonl", {"d": GOOD}, {"languages": ("xx",)}, "'xx'.*bn"),
    "languages as text": ("jsonl", {"d": GOOD}, {"languages": "de"}, "tuple"),
    "an absent language": ("jsonl", {"d": GOOD}, {"languages": ("de",)}, "holds no examples"),
    "a bad slice": ("jsonl", {"d": GOOD}, {"slice": "10:20"}, r"'10:20'.*\[100:200\]"),
    "an empty slice": ("jsonl", {"d": GOOD}, {"slice": "[5:]"}, r"keeps nothing of its 1"),
    "no weight": ("jsonl", {"d": GOOD}, {"weight": 0}, "weight=0"),
    "a negative weight": ("jsonl", {"d": GOOD}, {"weight": -1.5}, "weight=-1.5"),
    "an unknown key": ("jsonl", {"d": GOOD}, {"langauges": ()}, "no key langauges.*languages"),
    "an unknown builder": ("gsm9k", {}, {}, "'gsm9k'.*gsm8k"),
    "no final answer": (
        "gsm8k",
        {"d": '{"question": "a", "answer": "5"}'},
        {},
        "d:1.*####.*answer_style",
    ),
    "an unknown style": ("gsm8k", {"d": "{}"}, {"answer_style": "x"}, "answer_style='x'"),
    "no split": ("gsm8k", {"d/test.jsonl": "{}"}, {}, r"d/train\.jsonl does not exist"),
    "no tab": ("mgsm", {"d/mgsm_de.tsv": "Wie viele?\t3\nUnd? 4\n"}, {}, r"mgsm_de\.tsv:2.*0 tabs"),
    "no benchmark files": ("mgsm", {"d/other": ""}, {}, "no mgsm_"),
    "no file of a language": (
        "mgsm",
        {"d/mgsm_de.tsv": "a\t1\n"},
        {"languages": ("de", "fr")},
        r"mgsm_fr\.tsv nor mgsm_French\.json",
    ),
    "no mSVAMP language": (
        "msvamp",
        {"d/test_German.json": "{}"},
        {"languages": ("th",)},
        r"test_Thai\.json",
    ),
    "a row without m_query": (
        "msvamp",
        {"d/test_German.json": '{"query": "a", "response": "1.0"}'},
        {},
        r"test_German\.json:1: no key 'm_query'",
    ),
    "sides that differ": (
        "question_pairs",
        {"d/de-en/train.de": "a\nb\n", "d/de-en/train.en": "a\n"},
        {},
        r"train\.de has 2 lines and .*train\.en 1",
    ),
    "a named language with one side": (
        "question_pairs",
        {"d/bn-en/train.en": "a\n"},
        {"languages": ("bn",)},
        r"train\.bn missing",
    ),
    "no pairs": ("question_pairs", {"d/README": "a\n"}, {}, "no folder like de-en"),
    "a row of no language": (
        "gsm8kinstruct",
        {"d": '{"query": "a", "response": "b"}'},
        {"languages": ("de",)},
        "d:1.*language",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_named(tmp_path, case):
    name, written, more, message = BAD[case]
    for file, content in written.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = {"name": name, "path": str(tmp_path / "d")} | more
    with pytest.raises(ValueError, match=message) as raised:
        load_examples(source, tmp_path / "built")
    assert len(str(raised.value).splitlines()) == 1


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    (tmp_path / "d").write_text(GOOD * 5 + "{")
    with pytest.raises(ValueError):
        load_examples({"name": "jsonl", "path": str(tmp_path / "d")}, tmp_path / "built")
    assert not [path for path in (tmp_path / "built").rglob("*") if path.is_file()]
    assert not list((tmp_path / "built").glob(".building*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {}}, "no data sources"),
        ({"length": 1}, "length=1"),
        ({"cache_dir": "gs://bucket/cache"}, "local folder"),
        ({"template": "nope"}, "template 'nope'"),
        ({"length": 8}, r"every example of own.*length=8"),
    ],
)
def test_packing_names_its_mistakes(tmp_path, own_data, tokenizer, changes, message):
    arguments = {
        "sources": {"own": {"name": "jsonl", "path": str(own_data)}},
        "tokenizer": tokenizer,
        "template": "paper",
        "length": 256,
        "cache_dir": tmp_path / "cache",
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        packing.build(**(arguments | changes))


def test_a_weight_that_leaves_nothing_is_refused(tmp_path, tokenizer):
    (tmp_path / "d").write_text(json.dumps({"instruction": "a", "response": "b"}))
    source = {"name": "jsonl", "path": str(tmp_path / "d"), "weight": 0.2}
    with pytest.raises(ValueError, match=r"weight=0\.2 leaves none of 1"):
        packing.build({"own": source}, tokenizer, "short", 64, tmp_path / "cache", 0)
