"""MetaMathQA (arXiv 2309.12284): one JSON list of {query, response, type, original_question}."""

from qalign_jax.data import inputs
from qalign_jax.data.datasets import base


class MetaMath(base.ExamplesBuilder):
    """Stage II's English reasoning data; JSON Lines with the same keys are read as well."""

    name = "metamath"
    HAS_SPLITS = False
    ABOUT = "MetaMathQA-395K.json of huggingface.co/datasets/meta-math/MetaMathQA, or its folder"

    @classmethod
    def find_files(cls, config):
        found = cls.existing(config)
        if found.is_dir():
            found = inputs.existing(str(found / "MetaMathQA-395K.json"))
        return {"": found}

    @classmethod
    def read(cls, config):
        for number, where, row in inputs.read_objects(config.paths[""]):
            query = inputs.text_field(row, ("query",), where)
            response = inputs.text_field(row, ("response",), where)
            yield {
                "id": number,
                "instruction": inputs.filled(query, "query", where),
                "response": inputs.filled(response, "response", where),
                "language": "en",
            }


BUILDER = MetaMath
