"""OpenMathInstruct-1 (arXiv 2402.10176): solutions of GSM8K and MATH problems with Python code."""

import collections

from qalign_jax.data import inputs
from qalign_jax.data.datasets import base

_PARTS = ("gsm8k", "math")


class OpenMath(base.ExamplesBuilder):
    """Correct solutions, `<llm-code>` blocks and their outputs as they are published.

    JSON Lines {question, generated_solution, is_correct, dataset, ...}: one file, or a folder with
    `train.jsonl` or with any number of .jsonl files, which are read in the order of their names.

    `cap` keeps the first so many correct solutions of a question, in the files' order (0: all);
    `parts` those of GSM8K's problems, of MATH's, or both. Memory holds the questions' counts only.
    """

    name = "openmath"
    OPTIONS = {"cap": 0, "parts": _PARTS}
    ABOUT = (
        "the folder correct_solutions of huggingface.co/datasets/nvidia/OpenMathInstruct-1, or "
        "its train.jsonl"
    )

    @classmethod
    def find_files(cls, config):
        cap, parts = config.options["cap"], config.options["parts"]
        if not isinstance(cap, int) or cap < 0:
            raise ValueError(f"cap={cap!r}: give 0 for all solutions or a number above 0")
        if isinstance(parts, str) or not parts or set(parts) - set(_PARTS):
            raise ValueError(f"parts={parts!r} must be a tuple of {' and '.join(_PARTS)}")
        found = cls.existing(config)
        if not found.is_dir():
            return {found.stem: found}
        inside = found / "correct_solutions"
        found = inside if inside.exists() else found
        whole = found / f"{config.split or 'train'}.jsonl"
        paths = [whole] if whole.exists() else sorted(found.glob("*.jsonl"))
        if not paths:
            raise ValueError(f"{found} holds no .jsonl file; {cls.name}'s path is {cls.ABOUT}")
        return {path.stem: path for path in paths}

    @classmethod
    def read(cls, config):
        cap, parts = config.options["cap"], config.options["parts"]
        kept = collections.Counter()
        for stem, path in config.paths.items():
            total = wrong = capped = 0
            for number, where, row in inputs.read_objects(path):
                part = inputs.text_field(row, ("dataset",), where)
                if part not in _PARTS:
                    raise ValueError(
                        f"{where}: dataset {part!r} is neither {' nor '.join(_PARTS)}; mend the row"
                    )
                if part not in parts:
                    continue
                total += 1
                if not isinstance(correct := row.get("is_correct"), bool):
                    raise ValueError(
                        f"{where}: is_correct must be true or false, found {correct!r}; mend it"
                    )
                question = inputs.text_field(row, ("question",), where)
                if not correct:
                    wrong += 1
                elif cap and kept[question] == cap:
                    capped += 1
                else:
                    kept[question] += 1
                    solution = inputs.text_field(row, ("generated_solution",), where)
                    yield {
                        "id": f"{stem}/{number}",
                        "instruction": inputs.filled(question, "question", where),
                        "response": inputs.filled(solution, "solution", where),
                        "language": "en",
                    }
            base.log_dropped(wrong, total, path, "the solution is not correct")
            base.log_dropped(capped, total, path, f"{cap} solutions of the question are there")


BUILDER = OpenMath
