"""Errors of input name the file, the line and the remedy."""

import json

import pytest

from qalign_jax.data import packing
from qalign_jax.data.examples import load_examples
from tests.files import builder_of


def csqa_row(answer="", labels="AB", name="q1"):
    """A line of CommonsenseQA; its choices are equal, which is no mistake."""
    choices = [{"label": label, "text": "a shop"} for label in labels]
    row = {"id": name, "question": {"stem": "Where?", "choices": choices}}
    return json.dumps(row | ({"answerKey": answer} if answer else {})) + "\n"


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
    "languages as text": (
        "jsonl",
        {"d": GOOD},
        {"languages": "de"},
        "'de'; expected a list",
    ),
    "an absent language": ("jsonl", {"d": GOOD}, {"languages": ("de",)}, "holds no examples"),
    "a bad slice": ("jsonl", {"d": GOOD}, {"slice": "10:20"}, r"'10:20'.*\[100:200\]"),
    "an empty slice": ("jsonl", {"d": GOOD}, {"slice": "[5:]"}, r"keeps nothing of its 1"),
    "a slice above all": ("jsonl", {"d": GOOD}, {"slice": "[:200%]"}, r"a share above 100 %"),
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
    "no folder of a language": (
        "gsm8kinstruct",
        {"d/de/train.txt": "{}"},
        {"languages": ("de", "fr")},
        r"neither MGSM8KInstruct_Parallel\.json nor fr/train\.txt",
    ),
    "a negative cap": ("openmath", {"d": "{}"}, {"cap": -1}, "cap=-1"),
    "a part as text": ("openmath", {"d": "{}"}, {"parts": "math"}, "parts='math'; expected a list"),
    "no parts": ("openmath", {"d": "{}"}, {"parts": ()}, r"parts=\(\)"),
    "an unknown part": ("openmath", {"d": "{}"}, {"parts": ("svamp",)}, "svamp"),
    "a row of an unknown part": (
        "openmath",
        {"d/train.jsonl": '{"dataset": "aime", "question": "a", "is_correct": true}'},
        {},
        r"train\.jsonl:1: dataset 'aime'",
    ),
    "no verdict": (
        "openmath",
        {"d": '{"dataset": "math", "question": "a", "generated_solution": "b"}'},
        {},
        "d:1: is_correct",
    ),
    "no solutions": ("openmath", {"d/README": ""}, {}, r"no \.jsonl file.*OpenMathInstruct-1"),
    "an unlabelled split": ("csqa", {"d": csqa_row()}, {}, "d:1: no answerKey.*another split"),
    "an answer that is no choice": ("csqa", {"d": csqa_row("D")}, {}, "d:1.*'D' is none of A B"),
    "labels out of order": (
        "csqa",
        {"d": csqa_row("A", labels="BA")},
        {},
        "d:1: the choices are labelled B A",
    ),
    "one choice": ("csqa", {"d": csqa_row("A", labels="A")}, {}, "d:1.*labelled A; .*two or more"),
    "no choices": ("csqa", {"d": '{"question": "What?"}'}, {}, "d:1: expected .*'choices'"),
    "no questions": ("csqa", {"d/README": ""}, {}, r"train_rand_split\.jsonl nor .*CommonsenseQA"),
    "an unknown label": ("mnli", {"d/train-en.tsv": "a\tb\tmaybe\n"}, {}, r"en\.tsv:1.*'maybe'"),
    "no label": ("mnli", {"d/train-en.tsv": "a\tb\n"}, {}, r"train-en\.tsv:1: no label"),
    "a column too many": ("mnli", {"d": "a\tb\tneutral\tc\n"}, {}, "d:1: 4 columns.*3"),
    "a pair without a hypothesis": (
        "xnli",
        {"d/test-de.tsv": "a\t \tneutral\n"},
        {"languages": ("de",)},
        r"test-de\.tsv:1: the pair is empty",
    ),
    "no pairs of sentences": ("mnli", {"d/a": ""}, {}, r"none of multinli_1\.0_train\.jsonl"),
    "no English": (
        "translated_pairs",
        {"d/de/train.jsonl": csqa_row("A")},
        {},
        r"neither multinli\.train\.en\.tsv nor en/train\.jsonl.*X-CSQA's layout",
    ),
    "English alone": (
        "translated_pairs",
        {"d/en/train.jsonl": csqa_row("A")},
        {},
        "English alone",
    ),
    "a missing language": (
        "translated_pairs",
        {"d/en/train.jsonl": csqa_row("A"), "d/de/train.jsonl": csqa_row("A")},
        {"languages": ("de", "fr")},
        r"train\.jsonl in English but not in 'fr'",
    ),
    "another number of choices": (
        "translated_pairs",
        {"d/en/train.jsonl": csqa_row("A"), "d/de/train.jsonl": csqa_row("A", labels="ABC")},
        {},
        r"de/train\.jsonl:1: 3 choices, but the English question has 2",
    ),
    "an id that occurs twice": (
        "translated_pairs",
        {"d/en/train.jsonl": csqa_row("A"), "d/de/train.jsonl": csqa_row("A") * 2},
        {},
        r"de/train\.jsonl:2: the id 'q1' occurs twice",
    ),
    "ids of other questions": (
        "translated_pairs",
        {"d/en/train.jsonl": csqa_row("A"), "d/de/train.jsonl": csqa_row("A", name="q2")},
        {},
        r"de/train\.jsonl shares no id",
    ),
    "pairs of which one file ends early": (
        "translated_pairs",
        {"d/multinli.train.en.tsv": "a\tb\tneutral\n" * 2, "d/multinli.train.de.tsv": "a\tb\n"},
        {},
        r"train\.de\.tsv has fewer lines than .*train\.en\.tsv",
    ),
    "no English side": ("translations", {"d/a": ""}, {}, r"newstest2019-src\.eng\.txt does not"),
    "a language that NTREX lacks": (
        "translations",
        {"d/newstest2019-src.eng.txt": "a\n"},
        {"languages": ("qu",)},
        "no 'qu'.*zh",
    ),
    "a translation that is missing": (
        "translations",
        {"d/newstest2019-src.eng.txt": "a\n"},
        {"languages": ("de",)},
        r"newstest2019-ref\.deu\.txt does not exist",
    ),
    "a benchmark's missing language": (
        "xcsqa",
        {"d/X-CSQA/en/dev.jsonl": csqa_row("A")},
        {"languages": ("en", "ja")},
        r"X-CSQA/jap/dev\.jsonl does not exist; .*'ja'",
    ),
    "a benchmark's unlabelled split": (
        "xcsqa",
        {"d/en/test.jsonl": csqa_row()},
        {"languages": ("en",), "split": "test"},
        r"test\.jsonl:1: no answerKey",
    ),
    "XTREME's unlabelled test": (
        "xnli",
        {"d/test-de.tsv": "a\tb\n"},
        {"languages": ("de",)},
        r"test-de\.tsv:1: no label.*xnli\.test\.tsv.*split='dev'",
    ),
    "another split": (
        "xnli",
        {"d/dev-de.tsv": "a\tb\tneutral\n"},
        {"languages": ("de",)},
        r"neither xnli\.test\.tsv nor test-de\.tsv, but dev-de\.tsv; choose another split",
    ),
    "a benchmark's unknown label": (
        "xnli",
        {"d/test-de.tsv": "a\tb\tneutral\nc\td\tUNKNOWN\n"},
        {"languages": ("de",)},
        r"test-de\.tsv:2: the label 'UNKNOWN'",
    ),
    "a language that the official file lacks": (
        "xnli",
        {"d/xnli.test.tsv": "language\tgold_label\tsentence1\tsentence2\nde\tneutral\ta\tb\n"},
        {"languages": ("de", "fr")},
        r"xnli\.test\.tsv: no row of 'fr'",
    ),
    "neither cause nor effect": (
        "xcopa",
        {"d/it/test.it.jsonl": '{"premise": "a", "question": "why", "label": 1}'},
        {"languages": ("it",)},
        r"it\.jsonl:1: question='why'",
    ),
    "a third choice": (
        "xcopa",
        {"d/it/test.it.jsonl": '{"premise": "a", "question": "cause", "label": 2}'},
        {"languages": ("it",)},
        "label='2'",
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
        load_examples(source, tmp_path / "built", builder_of(name))
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
