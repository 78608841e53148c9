"""Compares two language identifiers on short texts whose language is known.

    pip install lingua-language-detector
    QALIGN_TEST_DATA=shared/data python -m tests.benchmarks.answer_language

Numbers and equations are removed first; both choose among the languages of
qalign_jax.data.prompts. Prints the share of texts identified correctly, by kind of text and
language, and what each identifier costs in its own process.
"""

import concurrent.futures
import csv
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import re
import resource
import time
from collections.abc import Callable

from qalign_jax.data.prompts import LANGUAGES
from qalign_jax.evaluation.answer_language import language_of, strip_mathematics

DATA = pathlib.Path(os.environ.get("QALIGN_TEST_DATA", "shared/data"))
ROWS = 500  # the most texts of a kind and language
NTREX = {
    "bn": "ref.ben", "de": "ref.deu", "en": "src.eng", "es": "ref.spa", "fr": "ref.fra",
    "ja": "ref.jpn", "ru": "ref.rus", "sw": "ref.swa", "te": "ref.tel", "th": "ref.tha",
    "zh": "ref.zho-CN",
}  # fmt: skip
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。？！।])\s*|\n")


def lines(path: pathlib.Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def texts() -> dict[str, dict[str, list[str]]]:
    """Kind of text -> language -> texts as they stand in the files."""
    mgsm = {
        path.stem[-2:]: [line.split("\t")[0] for line in lines(path)]
        for path in sorted((DATA / "mgsm" / "tsv").glob("*.tsv"))
    }
    exemplars = json.loads((DATA / "mgsm" / "exemplars.json").read_text(encoding="utf-8"))
    solutions = {
        language: [row["a"] for row in rows.values()]
        for language, rows in exemplars["MGSM_EXEMPLARS"].items()
    }
    english = [json.loads(line)["answer"] for line in lines(DATA / "gsm8k" / "test.jsonl")]
    xnli = {}
    for path in sorted((DATA / "xnli").glob("dev-*.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            xnli[path.stem[-2:]] = [row[1] for row in rows]
    codes = {name: code for code, name in LANGUAGES.items()}
    return {
        "mGSM solution": solutions,
        "its last sentence": {
            language: [sentences(row)[-1] for row in rows] for language, rows in solutions.items()
        },
        "GSM8K solution": {"en": english},
        "GSM8K step": {"en": [row.split("\n")[0] for row in english]},
        "mGSM question": mgsm,
        "one sentence of it": {
            language: [part for row in rows for part in sentences(row)]
            for language, rows in mgsm.items()
        },
        "mSVAMP question": {
            codes[path.stem.split("_")[1]]: [json.loads(line)["m_query"] for line in lines(path)]
            for path in sorted((DATA / "msvamp").glob("*.json"))
        },
        "GSM8KInstruct question": {
            path.suffix[1:]: lines(path)
            for path in sorted((DATA / "gsm8kinstruct_question").glob("*-en/train.*"))
            if path.suffix != ".en"
        },
        "NTREX sentence": {
            code: lines(DATA / "ntrex128" / f"newstest2019-{name}.txt")
            for code, name in NTREX.items()
        },
        "XNLI hypothesis": xnli,
    }


def sentences(text: str) -> list[str]:
    """The sentences that keep words without their mathematics."""
    return [part for part in SENTENCE_END.split(text) if strip_mathematics(part)]


def load(package: str) -> Callable[[str], str]:
    """A function from a text with its mathematics to a code of LANGUAGES."""
    if package == "py3langid":
        return language_of
    import lingua

    codes = [getattr(lingua.IsoCode639_1, code.upper()) for code in LANGUAGES]
    builder = lingua.LanguageDetectorBuilder.from_iso_codes_639_1(*codes)
    if package.endswith("(low accuracy)"):
        builder = builder.with_low_accuracy_mode()
    detector = builder.build()

    def identify(text):
        found = detector.detect_language_of(strip_mathematics(text))
        return found.iso_code_639_1.name.lower() if found else ""

    return identify


def measure(package: str, rows: list[str]) -> tuple[list[str], dict[str, float]]:
    """Answers and costs; run in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    identify = load(package)
    identify("Hello")
    loaded = time.perf_counter()
    found = [identify(text) for text in rows]
    end = time.perf_counter()
    return found, {
        "import and load, s": loaded - start,
        "texts a second": len(rows) / (end - loaded),
        "memory, MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def installed_megabytes(distribution: str) -> float:
    files = importlib.metadata.files(distribution) or []
    return sum(file.size or 0 for file in files) / 1e6


def main() -> None:
    packages = {
        "lingua": "lingua-language-detector",
        "lingua (low accuracy)": "lingua-language-detector",
        "py3langid": "py3langid",
    }
    rows = []  # kind, language, text
    for kind, by_language in texts().items():
        for language, there in by_language.items():
            step = -(-len(there) // ROWS)
            rows += [(kind, language, text) for text in there[::step] if strip_mathematics(text)]
    languages = sorted({language for _, language, _ in rows})
    found, costs = {}, {}
    for package in packages:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
            everything = [text for _, _, text in rows]
            found[package], costs[package] = pool.submit(measure, package, everything).result()

    print("| text | identifier | all |", " | ".join(languages), "|")
    print("|---|---|" + "---|" * (len(languages) + 1))
    for kind in dict.fromkeys(kind for kind, _, _ in rows):
        for package in packages:
            right = {}
            for (of, language, _), answer in zip(rows, found[package], strict=True):
                if of == kind:
                    right.setdefault(language, []).append(answer == language)
            shares = {code: 100 * sum(row) / len(row) for code, row in right.items()}
            cells = [f"{shares[code]:.1f}" if code in shares else "" for code in languages]
            mean = sum(shares.values()) / len(shares)
            print(f"| {kind} | {package} | {mean:.1f} |", " | ".join(cells), "|")
    print("\n| identifier | installed, MB |", " | ".join(costs["lingua"]), "|")
    print("|---|---|" + "---|" * len(costs["lingua"]))
    for package, distribution in packages.items():
        cells = " | ".join(f"{cost:,.1f}" for cost in costs[package].values())
        print(f"| {package} | {installed_megabytes(distribution):.1f} | {cells} |")


if __name__ == "__main__":
    main()
