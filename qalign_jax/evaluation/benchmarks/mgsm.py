"""mGSM (arXiv 2210.03057): 250 GSM8K test questions, parallel in eleven languages.

The paper averages over ten of them. Telugu is reported where it is asked for, and never averaged.
"""

from qalign_jax.data import inputs, prompts
from qalign_jax.data.datasets import base
from qalign_jax.evaluation.benchmarks.base import Benchmark

_DATA = (
    "https://raw.githubusercontent.com/google-research/url-nlp/"
    "452a21ad3dae5668c06ceeac21ff073e1e40f9be/mgsm"
)
PAPER_LANGUAGES = ("bn", "th", "sw", "ja", "zh", "de", "fr", "ru", "es", "en")


class MGSM(base.ExamplesBuilder):
    """`mgsm_de.tsv` (question, tab, answer) or `mgsm_German.json` (JSON Lines {query, response}).

    An id is the row's number, the same problem in every language.
    """

    name = "mgsm"
    HAS_SPLITS = False
    KEYS = base.BENCHMARK_KEYS
    ABOUT = "a folder with mgsm_de.tsv and so on, like mgsm of github.com/google-research/url-nlp"
    URLS = {f"mgsm_{code}.tsv": f"{_DATA}/mgsm_{code}.tsv" for code in (*PAPER_LANGUAGES, "te")}

    @classmethod
    def find_files(cls, config):
        folder = cls.existing(config)
        found = {}
        for code in config.languages or prompts.LANGUAGES:
            names = (f"mgsm_{code}.tsv", f"mgsm_{prompts.LANGUAGES[code]}.json")
            there = [folder / name for name in names if (folder / name).exists()]
            if there:
                found[code] = there[0]
            elif config.languages:
                raise ValueError(
                    f"{folder} has neither {names[0]} nor {names[1]}; add one of them or take "
                    f"{code!r} out of languages"
                )
        if not found:
            raise ValueError(f"{folder} has no mgsm_<code>.tsv or mgsm_<Language>.json file")
        return found

    @classmethod
    def read(cls, config):
        for language, path in config.paths.items():
            rows = _tsv(path) if path.suffix == ".tsv" else _json(path)
            for number, where, question, answer in rows:
                yield {
                    "id": number,
                    "language": language,
                    "question": inputs.filled(question, "question", where),
                    "answer": inputs.filled(answer, "answer", where),
                }


def _tsv(path):
    for number, line in enumerate(inputs.read_lines(path), 1):
        where = f"{path}:{number}"
        if line.count("\t") != 1:
            raise ValueError(
                f"{where}: expected a question, one tab and an answer, found {line.count(chr(9))} "
                "tabs; mend the line"
            )
        question, answer = line.split("\t")
        yield str(number), where, question, answer


def _json(path):
    for number, where, row in inputs.read_objects(path):
        question = inputs.text_field(row, ("query",), where)
        yield number, where, question, inputs.text_field(row, ("response",), where)


BENCHMARK = Benchmark(
    name="mgsm",
    languages=(*PAPER_LANGUAGES, "te"),
    averaged=PAPER_LANGUAGES,
    max_new_tokens=600,
    builder=MGSM,
)
