"""A user's own training data: JSON Lines {"instruction", "response"}, optional id and language."""

from qalign_jax.data import inputs
from qalign_jax.data.datasets import base


class JSONLines(base.ExamplesBuilder):
    """An empty instruction means plain text: the response is trained whole, without a prompt."""

    name = "jsonl"
    HAS_SPLITS = False
    OPTIONS = {"language": ""}  # of rows that do not say theirs
    ABOUT = "a file of your own with one JSON object a line"

    @classmethod
    def find_files(cls, config):
        return {"": cls.existing(config)}

    @classmethod
    def read(cls, config):
        for number, where, row in inputs.read_objects(config.paths[""]):
            language = inputs.text_field(row, ("language",), where, config.options["language"])
            if config.languages and language not in config.languages:
                continue
            response = inputs.text_field(row, ("response",), where)
            yield {
                "id": inputs.text_field(row, ("id",), where, number),
                "instruction": inputs.text_field(row, ("instruction",), where),
                "response": inputs.filled(response, "response", where),
                "language": language,
            }


BUILDER = JSONLines
