"""XCOPA (arXiv 2005.00333): the likelier cause or effect of two, in eleven languages."""

import json

from qalign_jax.data import inputs, prompts
from qalign_jax.data.datasets import base
from qalign_jax.evaluation.benchmarks.base import Benchmark
from qalign_jax.evaluation.protocols import choice

LANGUAGES = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
_ASKED = {"cause": "What was the cause?", "effect": "What happened as a result?"}
_FILES = {code: f"{code}/test.{code}.jsonl" for code in LANGUAGES}


class XCOPA(base.ExamplesBuilder):
    """`it/test.it.jsonl`: JSON Lines {premise, choice1, choice2, question, label, idx}."""

    name = "xcopa"
    KEYS = base.CHOICE_KEYS
    ABOUT = "the folder data of github.com/cambridgeltl/xcopa, with it/test.it.jsonl and so on"
    URLS = {
        file: f"https://raw.githubusercontent.com/cambridgeltl/xcopa/master/data/{file}"
        for file in _FILES.values()
    }

    @classmethod
    def find_files(cls, config):
        folder, split = cls.existing(config), config.split or "test"
        names = {code: f"{code}/{split}.{code}.jsonl" for code in config.languages or LANGUAGES}
        return {code: inputs.existing(str(folder / name)) for code, name in names.items()}

    @classmethod
    def read(cls, config):
        for language, path in config.paths.items():
            for number, where, row in inputs.read_objects(path):
                asked = inputs.text_field(row, ("question",), where)
                label = inputs.text_field(row, ("label",), where)
                if asked not in _ASKED or label not in ("0", "1"):  # numbers as the file wrote them
                    raise ValueError(
                        f"{where}: question={asked!r}, label={label!r}; expected cause or effect, "
                        "and 0 or 1"
                    )
                texts = [inputs.text_field(row, (f"choice{n}",), where) for n in (1, 2)]
                premise = inputs.text_field(row, ("premise",), where)
                question, letters = prompts.multiple_choice(f"{premise} {_ASKED[asked]}", texts)
                yield {
                    "id": inputs.text_field(row, ("idx",), where, number),
                    "language": language,
                    "question": question,
                    "answer": letters[int(label)],
                    "choices": json.dumps(letters),
                }


BENCHMARK = Benchmark("xcopa", LANGUAGES, LANGUAGES, 8, XCOPA, choice, ("A", "B"))
