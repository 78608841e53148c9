"""GSM8KInstruct (MathOctopus, arXiv 2310.20246): translated questions and answers."""

import re

from qalign_jax.data import inputs, prompts
from qalign_jax.data.datasets import base

# The published rows hold the whole prompt, which names the language of the question's answer.
_WRAPPED = re.compile(r"### Instruction:\n(.*)\n\n### Response:", re.DOTALL)
_NAMED = re.compile(r"(?:answer|request) in (\w+)")
_CODES = {name: code for code, name in prompts.LANGUAGES.items()}


class GSM8KInstruct(base.ExamplesBuilder):
    """One JSON file, a list or lines, or a folder: the file under its published name, else a file
    a language, `de/train.txt`, as the paper's authors split it.

    Published rows are {prompt, chosen}; also query, question or instruction with response, answer
    or output, and lang or language. A question inside a whole prompt is taken out of it: the
    recipe's own template goes around it.
    """

    name = "gsm8kinstruct"
    ABOUT = (
        "MGSM8KInstruct_Parallel.json of huggingface.co/datasets/Mathoctopus/GSM8KInstruct_Parallel"
        ", or a folder with that file or with JSON Lines a language, like de/train.txt"
    )

    @classmethod
    def find_files(cls, config):
        found = cls.existing(config)
        if not found.is_dir():
            return {"": found}
        whole = found / "MGSM8KInstruct_Parallel.json"
        if whole.exists():
            return {"": whole}
        split = config.split or "train"
        there = {code: found / code / f"{split}.txt" for code in prompts.LANGUAGES}
        there = {code: path for code, path in there.items() if path.exists()}
        if missing := [code for code in config.languages if code not in there]:
            raise ValueError(
                f"{found} has neither {whole.name} nor {missing[0]}/{split}.txt; add one of them "
                f"or take {missing[0]!r} out of languages"
            )
        if not there:
            raise ValueError(
                f"{found} has neither {whole.name} nor a file like de/{split}.txt; check the path"
            )
        return {code: there[code] for code in config.languages or there}

    @classmethod
    def read(cls, config):
        for language, path in config.paths.items():
            yield from _read(path, language, config.languages)


def _read(path, of_file, languages):
    for number, where, row in inputs.read_objects(path):
        text = inputs.text_field(row, ("prompt", "query", "question", "instruction"), where)
        response = inputs.text_field(row, ("chosen", "response", "answer", "output"), where)
        language = of_file or inputs.text_field(row, ("language", "lang"), where, "")
        language = _CODES.get(language, language)
        if wrapped := _WRAPPED.search(text):
            named = _NAMED.search(text, 0, wrapped.start())
            language = language or _CODES.get(named.group(1) if named else "", "")
            text = wrapped.group(1)
        if languages:
            if not language:
                raise ValueError(
                    f"{where}: the row does not say its language, so languages="
                    f"{languages} cannot choose; add 'language' or leave languages empty"
                )
            if language not in languages:
                continue
        yield {
            "id": f"{of_file}/{number}" if of_file else number,
            "instruction": inputs.filled(text, "question", where),
            "response": inputs.filled(response, "response", where),
            "language": language,
        }


BUILDER = GSM8KInstruct
