"""MultiNLI (arXiv 1704.05426): English pairs of sentences, answered by the label."""

from qalign_jax.data import inputs, prompts
from qalign_jax.data.datasets import base

LABELS = ("entailment", "neutral", "contradiction")
_SPELLINGS = {"contradictory": "contradiction"}  # of XNLI's machine-translated training data
_LABEL = ("gold_label", "label")
_COLUMNS = ("premise", "hypothesis", "label")  # of XTREME's files, which have no header


class MNLI(base.ExamplesBuilder):
    """Premise and hypothesis as one text, answered by entailment, neutral or contradiction.

    One file, or a folder with one of multinli_1.0_train.jsonl, multinli_1.0_train.txt, XTREME's
    train-en.tsv and XNLI-MT's multinli.train.en.tsv. Pairs without a gold label (`-`) or with
    an empty sentence are dropped.
    """

    name = "mnli"
    ABOUT = (
        "multinli_1.0_train.jsonl or .txt of cims.nyu.edu/~sbowman/multinli/multinli_1.0.zip, "
        "XTREME's train-en.tsv, or a folder with one of them"
    )

    @classmethod
    def find_files(cls, config):
        found = cls.existing(config)
        if found.is_dir():
            split = config.split or "train"
            names = (
                f"multinli_1.0_{split}.jsonl",
                f"multinli_1.0_{split}.txt",
                f"{split}-en.tsv",
                f"multinli.{split}.en.tsv",
            )
            if not (there := [found / name for name in names if (found / name).exists()]):
                raise ValueError(f"{found} has none of {', '.join(names)}; check the path")
            found = there[0]
        return {"": found}

    @classmethod
    def read(cls, config):
        total = dropped = 0
        for number, where, row in read_rows(config.paths[""]):
            total += 1
            text = question(row, where)
            if not text or inputs.text_field(row, _LABEL, where, "") == "-":
                dropped += 1
                continue
            yield {
                "id": number,
                "instruction": text,
                "response": label(row, where),
                "language": "en",
            }
        why = "no gold label, or an empty sentence"
        base.log_dropped(dropped, total, config.paths[""], why)


def read_rows(path):
    """Yields (line number, where, row) of any file of sentence pairs in a published format."""
    if path.suffix == ".jsonl":
        return inputs.read_objects(path)
    return inputs.read_tsv(path, _COLUMNS, header=_LABEL)


def question(row, where: str) -> str:
    """The row's premise and hypothesis as one text; "" where one of them is empty."""
    premise = inputs.text_field(row, ("premise", "sentence1"), where)
    hypothesis = inputs.text_field(row, ("hypothesis", "hypo", "sentence2"), where)
    if not premise.strip() or not hypothesis.strip():
        return ""
    return prompts.premise_and_hypothesis(premise, hypothesis)


def label(row, where: str) -> str:
    """The row's label, one of LABELS."""
    given = inputs.text_field(row, _LABEL, where, "")
    if not given:
        raise ValueError(
            f"{where}: no label; XTREME's test files are published without labels, so take "
            "XNLI-1.0's xnli.test.tsv, or split='dev'"
        )
    found = _SPELLINGS.get(given, given)
    if found not in LABELS:
        raise ValueError(f"{where}: the label {given!r} is none of {', '.join(LABELS)}")
    return found


BUILDER = MNLI
