"""mSVAMP (arXiv 2310.20246): 1,000 SVAMP questions, parallel in ten languages."""

from qalign_jax.data import inputs, prompts
from qalign_jax.data.datasets import base
from qalign_jax.evaluation.benchmarks.base import Benchmark
from qalign_jax.evaluation.benchmarks.mgsm import PAPER_LANGUAGES

_DATA = (
    "https://raw.githubusercontent.com/microsoft/MathOctopus/"
    "4d385db696c420b212ccf861fcfab13c1499a576/step1_supervised_finetuning/data/msvamp"
)


class MSVAMP(base.ExamplesBuilder):
    """`test_German.json`: JSON Lines {m_query, response}; `query`, where it is, is the English.

    An id is the row's number, the same problem in every language.
    """

    name = "msvamp"
    HAS_SPLITS = False
    KEYS = base.BENCHMARK_KEYS
    ABOUT = (
        "a folder with test_German.json and so on, like step1_supervised_finetuning/data/msvamp "
        "of github.com/microsoft/MathOctopus"
    )
    URLS = {
        f"test_{prompts.LANGUAGES[code]}.json": f"{_DATA}/test_{prompts.LANGUAGES[code]}.json"
        for code in PAPER_LANGUAGES
    }

    @classmethod
    def find_files(cls, config):
        folder = cls.existing(config)
        found = {}
        for code in config.languages or prompts.LANGUAGES:
            path = folder / f"test_{prompts.LANGUAGES[code]}.json"
            if path.exists():
                found[code] = path
            elif config.languages:
                raise ValueError(f"{path} does not exist; add it or take {code!r} out of languages")
        if not found:
            raise ValueError(f"{folder} has no test_<Language>.json file")
        return found

    @classmethod
    def read(cls, config):
        for language, path in config.paths.items():
            for number, where, row in inputs.read_objects(path):
                question = inputs.text_field(row, ("m_query",), where)
                answer = inputs.text_field(row, ("response",), where)
                yield {
                    "id": number,
                    "language": language,
                    "question": inputs.filled(question, "question", where),
                    "answer": inputs.filled(answer, "answer", where),
                }


BENCHMARK = Benchmark(
    name="msvamp",
    languages=PAPER_LANGUAGES,
    averaged=PAPER_LANGUAGES,
    max_new_tokens=300,
    builder=MSVAMP,
)
