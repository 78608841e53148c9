"""GSM8K (arXiv 2110.14168): JSON Lines {question, answer}, the last line `#### 72`."""

import re

from qalign_jax.data.datasets import base, inputs

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_FINAL = re.compile(r"\n?#### *([^\n]+?)\s*$")


class GSM8K(base.ExamplesBuilder):
    """English questions with chains of thought; calculator annotations `<<..>>` are left out.

    `answer_style`: "metamath" ends the response with `The answer is: 72`, as stage II's data
    does; "gsm8k" keeps `#### 72`.
    """

    name = "gsm8k"
    OPTIONS = {"answer_style": "metamath"}

    @classmethod
    def find_files(cls, config):
        style = config.options["answer_style"]
        if style not in ("metamath", "gsm8k"):
            raise ValueError(f"answer_style={style!r} must be 'metamath' or 'gsm8k'")
        found = inputs.existing(config.path, "give GSM8K's folder or one of its .jsonl files")
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
