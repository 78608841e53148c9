"""MetaMathQA (arXiv 2309.12284): one JSON list of {query, response, type, original_question}."""

from qalign_jax.data.datasets import base, files


class MetaMath(base.ExamplesBuilder):
    """Stage II's English reasoning data; JSON Lines with the same keys are read as well."""

    name = "metamath"

    @classmethod
    def find_files(cls, config):
        remedy = "download MetaMathQA-395K.json and give its path"
        found = files.existing(config.path, remedy)
        if found.is_dir():
            found = files.existing(str(found / "MetaMathQA-395K.json"), remedy)
        return {"": found}

    @classmethod
    def read(cls, config):
        for number, where, row in files.read_objects(config.paths[""]):
            query = files.text_field(row, ("query",), where)
            response = files.text_field(row, ("response",), where)
            yield {
                "id": number,
                "instruction": files.filled(query, "query", where),
                "response": files.filled(response, "response", where),
                "language": "en",
            }
