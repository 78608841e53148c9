"""CommonsenseQA (arXiv 1811.00937): English questions of five choices, without chain of thought."""

from qalign_jax.data import inputs, prompts
from qalign_jax.data.datasets import base

FOLDERS = {"ja": "jap"}  # X-CSQA's names of languages that are not their ISO 639-1 codes
_CODES = {name: code for code, name in FOLDERS.items()}


class CSQA(base.ExamplesBuilder):
    """The question with its lettered choices, answered by the letter.

    JSON Lines {id, question: {stem, choices: [{label, text}]}, answerKey}: one file, or a folder
    with train_rand_split.jsonl, or in X-CSQA's layout with en/train.jsonl.
    """

    name = "csqa"
    ABOUT = (
        "train_rand_split.jsonl of CommonsenseQA (tau-nlp.org/commonsenseqa), or a folder with it, "
        "or one with en/train.jsonl in X-CSQA's layout"
    )
    URLS = {
        file: f"https://s3.amazonaws.com/commensenseqa/{file}"
        for file in ("train_rand_split.jsonl", "dev_rand_split.jsonl")
    }

    @classmethod
    def find_files(cls, config):
        found = cls.existing(config)
        if found.is_dir():
            split = config.split or "train"
            paths = [found / f"{split}_rand_split.jsonl", found / "en" / f"{split}.jsonl"]
            if not (there := [path for path in paths if path.exists()]):
                raise ValueError(
                    f"neither {paths[0]} nor {paths[1]} exists; the path of csqa is {cls.ABOUT}"
                )
            found = there[0]
        return {"": found}

    @classmethod
    def read(cls, config):
        for example_id, where, language, question, letters, key in read_questions(config.paths[""]):
            yield {
                "id": example_id,
                "instruction": question,
                "response": answer(key, letters, where),
                "language": language,
            }


def read_questions(path):
    """Yields (id, where, language, question with its choices, letters, key) of each row.

    The key is "" where the row has none. Choices may be equal, which is why letters are answered.

    Raises:
      ValueError: a row of another form.
    """
    for number, where, row in inputs.read_objects(path):
        inside, labels, texts = row.get("question"), [], []
        inside = inside if isinstance(inside, dict) else {}
        choices = inside.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise ValueError(
                f"{where}: expected {{'question': {{'stem': .., 'choices': [{{'label': .., 'text': "
                ".. }, ..]}}; mend the row"
            )
        for choice in choices:
            labels.append(inputs.text_field(choice, ("label",), where))
            texts.append(inputs.filled(inputs.text_field(choice, ("text",), where), "text", where))
        stem = inputs.filled(inputs.text_field(inside, ("stem",), where), "stem", where)
        if len(texts) > len(prompts.LETTERS):
            raise ValueError(f"{where}: {len(texts)} choices; at most {len(prompts.LETTERS)}")
        question, letters = prompts.multiple_choice(stem, texts)
        if labels != letters or len(letters) < 2:
            found = " ".join(" ".join(labels).split())
            raise ValueError(
                f"{where}: the choices are labelled {found}; expected two or more, "
                "labelled A B C and so on"
            )
        language = inputs.text_field(row, ("lang",), where, "en")
        example_id = inputs.text_field(row, ("id",), where, number)
        key = inputs.text_field(row, ("answerKey",), where, "")
        yield example_id, where, _CODES.get(language, language), question, letters, key


def answer(key: str, letters: list[str], where: str) -> str:
    """The key, which must be one of the letters."""
    if not key:
        raise ValueError(
            f"{where}: no answerKey; test splits are published without answers, take another split"
        )
    if key not in letters:
        raise ValueError(f"{where}: the answer {key!r} is none of {' '.join(letters)}")
    return key


BUILDER = CSQA
