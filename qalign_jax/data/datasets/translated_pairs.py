"""Stage I of common sense and of inference: whole questions, translated into English."""

import collections
import re

from qalign_jax.data import inputs, prompts
from qalign_jax.data.datasets import base, csqa, mnli, question_pairs

_NLI_FILE = re.compile(r"multinli\.\w+\.([a-z]{2})\.tsv")


class TranslatedPairs(base.ExamplesBuilder):
    """Translate a question, as stage II shows it with its options or its two sentences, into
    English. An id is `de/17`; the languages come interleaved, as in question_pairs.

    The folder has one of two layouts:

    - X-CSQA's: `en/train.jsonl`, `de/train.jsonl` and so on, questions matched by their id;
    - XNLI-MT's: `multinli.train.en.tsv`, `multinli.train.de.tsv` and so on, parallel by line.
    """

    name = "translated_pairs"
    ABOUT = (
        "a folder in X-CSQA's layout with translated questions (en/train.jsonl, de/train.jsonl, "
        "..., of equal ids), or the folder multinli of dl.fbaipublicfiles.com/XNLI/XNLI-MT-1.0.zip "
        "(multinli.train.en.tsv, multinli.train.de.tsv, ...)"
    )

    @classmethod
    def find_files(cls, config):
        folder, split = cls.existing(config), config.split or "train"
        layouts = (_nli_files, _csqa_files)
        there = [found for layout in layouts if "en" in (found := layout(folder, split))]
        if not there:
            raise ValueError(
                f"{folder} has neither multinli.{split}.en.tsv nor en/{split}.jsonl; the path of "
                f"translated_pairs is {cls.ABOUT}"
            )
        found = there[0]
        english = found.pop("en")
        if missing := [code for code in config.languages if code not in found]:
            raise ValueError(
                f"{folder} has {english.name} in English but not in {missing[0]!r}; add it or take "
                f"{missing[0]!r} out of languages"
            )
        if not found:
            raise ValueError(f"{folder} has questions in English alone; add translations")
        return {"en": english} | {code: found[code] for code in config.languages or found}

    @classmethod
    def read(cls, config):
        return (_read_nli if config.paths["en"].suffix == ".tsv" else _read_csqa)(config.paths)


def _nli_files(folder, split):
    names = sorted(child.name for child in folder.glob(f"multinli.{split}.*.tsv"))
    return {m.group(1): folder / m.group() for name in names if (m := _NLI_FILE.fullmatch(name))}


def _csqa_files(folder, split):
    there = {
        code: folder / csqa.FOLDERS.get(code, code) / f"{split}.jsonl" for code in prompts.LANGUAGES
    }
    return {code: path for code, path in there.items() if path.exists()}


def _read_nli(paths):
    kept, total = collections.Counter(), 0
    for rows in inputs.read_parallel(paths, mnli.read_rows):
        total += 1
        texts = {code: mnli.question(row, where) for code, (_, where, row) in rows.items()}
        line, english = rows["en"][0], texts.pop("en")
        for code, text in texts.items():
            if text and english:
                kept[code] += 1
                yield question_pairs.pair(code, line, text, english)
    for code in paths.keys() - {"en"}:
        base.log_dropped(total - kept[code], total, paths[code], "a side is empty")


def _read_csqa(paths):
    questions = {code: _by_id(path) for code, path in paths.items()}
    english = questions.pop("en")
    for code, found in questions.items():
        unmatched = len(found.keys() - english.keys())
        base.log_dropped(unmatched, len(found), paths[code], f"the id is not in {paths['en']}")
        if unmatched == len(found):
            raise ValueError(f"{paths[code]} shares no id with {paths['en']}; give rows their ids")
    for example_id, (text, choices, _) in english.items():
        for code, found in questions.items():
            if example_id not in found:
                continue
            translated, translated_choices, where = found[example_id]
            if translated_choices != choices:
                raise ValueError(
                    f"{where}: {len(translated_choices)} choices, but the English question has "
                    f"{len(choices)}; mend the row"
                )
            yield question_pairs.pair(code, example_id, translated, text)


def _by_id(path):
    """Id -> (question with its choices, letters, where)."""
    found = {}
    for example_id, where, _, text, letters, _ in csqa.read_questions(path):
        if example_id in found:
            raise ValueError(f"{where}: the id {example_id!r} occurs twice; give every row its own")
        found[example_id] = (text, letters, where)
    return found


BUILDER = TranslatedPairs
