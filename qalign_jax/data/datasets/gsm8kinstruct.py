"""GSM8KInstruct (MathOctopus, arXiv 2310.20246): translated questions and answers."""

import re

from qalign_jax.data import prompts
from qalign_jax.data.datasets import base, inputs

# The published rows hold the whole prompt, which names the language of the question's answer.
_WRAPPED = re.compile(r"### Instruction:\n(.*)\n\n### Response:", re.DOTALL)
_NAMED = re.compile(r"(?:answer|request) in (\w+)")
_CODES = {name: code for code, name in prompts.LANGUAGES.items()}


class GSM8KInstruct(base.ExamplesBuilder):
    """JSON, a list or lines. Published: {prompt, chosen}; also query, question or instruction
    with response, answer or output, and lang or language.

    A question inside a whole prompt is taken out of it: the recipe's own template goes around it.
    """

    name = "gsm8kinstruct"

    @classmethod
    def find_files(cls, config):
        found = inputs.existing(config.path, "give GSM8KInstruct's JSON file")
        if found.is_dir():
            raise ValueError(f"{found} is a folder; give the path of the JSON file inside it")
        return {"": found}

    @classmethod
    def read(cls, config):
        for number, where, row in inputs.read_objects(config.paths[""]):
            text = inputs.text_field(row, ("prompt", "query", "question", "instruction"), where)
            response = inputs.text_field(row, ("chosen", "response", "answer", "output"), where)
            language = inputs.text_field(row, ("language", "lang"), where, "")
            language = _CODES.get(language, language)
            if wrapped := _WRAPPED.search(text):
                named = _NAMED.search(text, 0, wrapped.start())
                language = language or _CODES.get(named.group(1) if named else "", "")
                text = wrapped.group(1)
            if config.languages:
                if not language:
                    raise ValueError(
                        f"{where}: the row does not say its language, so languages="
                        f"{config.languages} cannot choose; add 'language' or leave languages empty"
                    )
                if language not in config.languages:
                    continue
            yield {
                "id": number,
                "instruction": inputs.filled(text, "question", where),
                "response": inputs.filled(response, "response", where),
                "language": language,
            }
