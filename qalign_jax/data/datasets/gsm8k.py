"""GSM8K (arXiv 2110.14168): JSON Lines {question, answer}, the last line `#### 72`."""

import re

from qalign_jax.data import inputs
from qalign_jax.data.datasets import base

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_DATA = (
    "https://raw.githubusercontent.com/openai/grade-school-math/"
    "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data"
)
_FINAL = re.compile(r"\n?#### *([^\n]+?)\s*$")


class GSM8K(base.ExamplesBuilder):
    """English questions with chains of thought; calculator annotations `<<..>>` are left out.

    `answer_style`: "metamath" ends the response with `The answer is: 72`, as stage II's data
    does; "gsm8k" keeps `#### 72`.
    """

    name = "gsm8k"
    OPTIONS = {"answer_style": "metamath"}
    ABOUT = (
        "the folder grade_school_math/data of github.com/openai/grade-school-math, with "
        "train.jsonl and test.jsonl, or one of these files"
    )
    URLS = {file: f"{_DATA}/{file}" for file in ("train.jsonl", "test.jsonl")}

    @classmethod
    def find_files(cls, config):
        style = config.options["answer_style"]
        if style not in ("metamath", "gsm8k"):
            raise ValueError(f"answer_style={style!r} must be 'metamath' or 'gsm8k'")
        found = cls.existing(config)
        if found.is_dir():
            found = inputs.existing(str(found / f"{config.split or 'train'}.jsonl"))
        return {"": found}

    @classmethod
    def read(cls, config):
        for number, where, row in inputs.read_objects(config.paths[""]):
            question = inputs.text_field(row, ("question",), where)
            answer = inputs.text_field(row, ("answer",), where)
            response = _ANNOTATION.sub("", inputs.filled(answer, "answer", where))
            if config.options["answer_style"] == "metamath":
                response, found = _FINAL.subn(r"\nThe answer is: \1", response)
                if not found:
                    raise ValueError(
                        f"{where}: the answer does not end with a line '#### <number>'; "
                        "mend it, or set answer_style='gsm8k' to keep answers as they are"
                    )
            yield {
                "id": number,
                "instruction": inputs.filled(question, "question", where),
                "response": response.lstrip("\n"),
                "language": "en",
            }


BUILDER = GSM8K
