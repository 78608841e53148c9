"""MetaMathQA (arXiv 2309.12284): one JSON list of {query, response, type, original_question}."""

from qalign_jax.data.datasets import base, inputs


class MetaMath(base.ExamplesBuilder):
    """Stage II's English reasoning data; JSON Lines with the same keys are read as well."""

    name = "metamath"

    @classmethod
    def find_files(cls, config):
        remedy = "download MetaMathQA-395K.json and give its path"
        found = inputs.existing(config.path, remedy)
        if found.is_dir():
            found = inputs.existing(str(found / "MetaMathQA-395K.json"), remedy)
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
