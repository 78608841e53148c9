"""Every data set and benchmark, for readers.py: its files, and its rows without TFDS's store."""

import json

from qalign_jax.data.examples import Source
from tests.files import builder_of, write_jsonl


def data_set(name, written, **options):
    """What makes a data set's files, from their contents by name, and what reads its rows."""

    def make(folder):
        for file, content in written.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            elif path.suffix == ".json":
                path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            else:
                write_jsonl(path, content)

    def read(folder):
        path = folder / next(iter(written)) if len(written) == 1 else folder
        options_ = {"name": name, "path": str(path), **options}
        source = Source.parse(options_, builder_of(name))
        config = source.configure(folder / "built")
        for row in source.builder.read(config):
            assert set(row) >= {"id", "language"}
            assert all(isinstance(value, str) for value in row.values()), row
            json.dumps(row, ensure_ascii=False).encode()

    return make, read


CSQA = [
    {
        "id": f"q{number}",
        "lang": "en",
        "answerKey": "A",
        "question": {
            "stem": "Where?",
            "choices": [{"label": label, "text": f"place {label}"} for label in "ABC"],
        },
    }
    for number in range(3)
]
NLI = "".join(f"a {n}\tb {n}\tneutral\n" for n in range(3))
XCOPA = [
    {"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 1, "idx": n}
    for n in range(3)
]
GSM8K = [{"question": f"{n} + 1?", "answer": f"<<{n}+1={n + 1}>>\n#### {n + 1}"} for n in range(3)]
PAIRS = [
    {"id": str(n), "instruction": f"{n}?", "response": "a", "language": "de"} for n in range(3)
]
WRAPPED = {
    "prompt": "answer in German\n\n### Instruction:\nWie?\n\n### Response:", "chosen": "So."
}  # fmt: skip
OPEN = {"dataset": "math", "question": "a", "is_correct": True, "generated_solution": "b"}
ALL_NLI = {
    "xnli.test.tsv": "language\tgold_label\tsentence1\tsentence2\tpairID\n"
    + "".join(f"de\tneutral\ta\tb\t{n}\n" for n in range(3))
}
NTREX = {"newstest2019-src.eng.txt": "one\ntwo\n", "newstest2019-ref.deu.txt": "eins\nzwei\n"}
DATA_SETS = {
    "jsonl": data_set("jsonl", {"own.jsonl": PAIRS}),
    "gsm8k": data_set("gsm8k", {"train.jsonl": GSM8K}),
    "gsm8kinstruct": data_set("gsm8kinstruct", {"all.json": [WRAPPED] * 2}, languages=("de",)),
    "metamath": data_set("metamath", {"m.json": [{"query": "a", "response": "b"}] * 3}),
    "openmath": data_set("openmath", {"train.jsonl": [OPEN] * 3}, cap=2),
    "csqa": data_set("csqa", {"train.jsonl": CSQA}),
    "mnli": data_set("mnli", {"train-en.tsv": NLI}),
    "question_pairs": data_set(
        "question_pairs", {"de-en/train.de": "eins\nzwei\n", "de-en/train.en": "one\ntwo\n"}
    ),
    "translated_pairs": data_set(
        "translated_pairs", {"en/train.jsonl": CSQA, "de/train.jsonl": CSQA}
    ),
    "translated_nli": data_set(
        "translated_pairs", {"multinli.train.en.tsv": NLI, "multinli.train.de.tsv": NLI}
    ),
    "translations": data_set("translations", NTREX, languages=("de",)),
    "mgsm": data_set("mgsm", {"mgsm_de.tsv": "Wie?\t3\nUnd?\t4\n", "mgsm_en.tsv": "How?\t3\n"}),
    "mgsm_json": data_set(
        "mgsm", {"mgsm_German.json": '{"query": "Wie?", "response": "3"}\n', "x": ""}
    ),
    "msvamp": data_set(
        "msvamp", {"test_German.json": '{"m_query": "Wie?", "response": "3"}\n', "x": ""}
    ),
    "xcsqa": data_set("xcsqa", {"en/dev.jsonl": CSQA, "x": ""}, languages=("en",)),
    "xcopa": data_set("xcopa", {"it/test.it.jsonl": XCOPA, "x": ""}, languages=("it",)),
    "xnli": data_set("xnli", {**ALL_NLI, "x": ""}, languages=("de",)),
    "xnli_by_language": data_set(
        "xnli", {"dev-de.tsv": NLI, "x": ""}, languages=("de",), split="dev"
    ),
}
