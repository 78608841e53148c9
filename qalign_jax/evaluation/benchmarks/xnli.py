"""XNLI (arXiv 1809.05053): inference on pairs of sentences, parallel in fifteen languages."""

import json

from qalign_jax.data import inputs
from qalign_jax.data.datasets import base, mnli
from qalign_jax.evaluation.benchmarks.base import Benchmark
from qalign_jax.evaluation.protocols import choice

LANGUAGES = (
    "en", "ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh",
)  # fmt: skip


class XNLI(base.ExamplesBuilder):
    """XNLI-1.0's `xnli.test.tsv` of all languages, or XTREME's `dev-de.tsv` a language.

    The split is test unless another is asked for; XTREME's test files have no labels. An id is
    the pair's own or the line's number, the same pair in every language.
    """

    name = "xnli"
    KEYS = base.CHOICE_KEYS
    ABOUT = (
        "the folder of dl.fbaipublicfiles.com/XNLI/XNLI-1.0.zip with xnli.test.tsv, or one with "
        "XTREME's dev-de.tsv and so on and split='dev'"
    )

    @classmethod
    def find_files(cls, config):
        folder, split = cls.existing(config), config.split or "test"
        if (inside := folder / "XNLI-1.0").exists():
            folder = inside
        if (official := folder / f"xnli.{split}.tsv").exists():
            return {"": official}
        found = {code: folder / f"{split}-{code}.tsv" for code in config.languages or LANGUAGES}
        for code, path in found.items():
            if not path.exists():
                there = sorted(child.name for child in folder.glob("*.tsv"))
                raise ValueError(
                    f"{folder} has neither {official.name} nor {path.name}, but "
                    f"{' '.join(there) or 'no .tsv file'}; choose another split, take {code!r} out "
                    f"of languages, or give as path {cls.ABOUT}"
                )
        return found

    @classmethod
    def read(cls, config):
        wanted, seen = config.languages or LANGUAGES, set()
        for of_file, path in config.paths.items():
            for number, where, row in mnli.read_rows(path):
                language = of_file or inputs.text_field(row, ("language",), where)
                if language not in wanted:
                    continue
                seen.add(language)
                yield {
                    "id": inputs.text_field(row, ("pairID",), where, number),
                    "language": language,
                    "question": inputs.filled(mnli.question(row, where), "pair", where),
                    "answer": mnli.label(row, where),
                    "choices": json.dumps(mnli.LABELS),
                }
        if missing := [language for language in wanted if language not in seen]:
            raise ValueError(
                f"{' '.join(map(str, config.paths.values()))}: no row of {missing[0]!r}; take it "
                "out of languages"
            )


BENCHMARK = Benchmark(
    name="xnli",
    languages=LANGUAGES,
    averaged=LANGUAGES,
    max_new_tokens=16,
    builder=XNLI,
    protocol=choice,
    choices=mnli.LABELS,
)
