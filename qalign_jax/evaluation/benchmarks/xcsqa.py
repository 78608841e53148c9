"""X-CSQA (arXiv 2106.06937): CommonsenseQA questions translated into fifteen languages."""

import json

from qalign_jax.data.datasets import base, csqa
from qalign_jax.evaluation.benchmarks.base import Benchmark
from qalign_jax.evaluation.protocols import choice

LANGUAGES = (
    "en", "zh", "de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "ar", "vi", "hi", "sw", "ur",
)  # fmt: skip


class XCSQA(base.ExamplesBuilder):
    """`X-CSQA/de/dev.jsonl`, and `jap` for Japanese; the answer is the letter.

    An id is the row's own, the same problem in every language; the files have them in different
    orders, here they are sorted. The test split is published without answers.
    """

    name = "xcsqa"
    KEYS = base.CHOICE_KEYS
    ABOUT = "the folder X-CSQA of inklab.usc.edu/XCSR/xcsr_datasets.zip, or the one it lies in"

    @classmethod
    def find_files(cls, config):
        folder = cls.existing(config)
        if (inside := folder / "X-CSQA").exists():
            folder = inside
        found = {
            code: folder / csqa.FOLDERS.get(code, code) / f"{config.split or 'dev'}.jsonl"
            for code in config.languages or LANGUAGES
        }
        for code, path in found.items():
            if not path.exists():
                raise ValueError(f"{path} does not exist; add it or take {code!r} out of languages")
        return found

    @classmethod
    def read(cls, config):
        for language, path in config.paths.items():
            rows = sorted(csqa.read_questions(path), key=lambda row: row[0])
            for example_id, where, _, question, letters, key in rows:
                yield {
                    "id": example_id,
                    "language": language,
                    "question": question,
                    "answer": csqa.answer(key, letters, where),
                    "choices": json.dumps(letters),
                }


BENCHMARK = Benchmark(
    name="xcsqa",
    languages=LANGUAGES,
    averaged=LANGUAGES,
    max_new_tokens=8,
    builder=XCSQA,
    protocol=choice,
    choices=tuple("ABCDE"),
)
