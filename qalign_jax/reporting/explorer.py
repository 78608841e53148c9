"""The explorer of single questions: every system's answers side by side, in the report's page.

The answers travel compressed in the page, one block a benchmark and language and another for its
traces; explorer.js unpacks those that are looked at.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from markupsafe import Markup

from qalign_jax import files, schema
from qalign_jax.data import prompts
from qalign_jax.evaluation.protocols import code
from qalign_jax.evaluation.records import check_answer, check_header
from qalign_jax.evaluation.runner import LIKELIHOOD
from qalign_jax.reporting import templates
from qalign_jax.reporting.stages import in_order

_REMEDY = "delete the line and start the run again, which answers its problem again"
_NEEDED = ("id", "question", "answer", "output", "correct")
_MOVES = ("base_probability", "probability", "moved")  # of a trace, as the page shows them


def section(workdir: epath.Path, stages: Sequence[str]) -> Markup:
    """The section of a page, with its style, script and data; "" where there are no answers.

    Reads `<stage>/<system>/<benchmark>/<language>.jsonl` of the stages, and `likelihood/` beside.
    A system without an answer to a question that another one has answered is shown as such.

    The page defines the colours --paper --panel --ink --muted --line --accent --good --bad.

    Raises:
      ValueError: a file of answers is damaged.
    """
    blocks: list[str] = []
    orders: dict[tuple[str, ...], int] = {}  # ids in order; languages mostly share one
    datasets = [
        {"stage": stage, "benchmark": benchmark, **dataset}
        for stage in stages
        for benchmark, languages in sorted(_answer_files(workdir / stage).items())
        if (dataset := _dataset(languages, blocks, orders))["languages"]
    ]
    if not datasets:
        return Markup("")
    index = _compressed({"datasets": datasets, "ids": list(orders)})
    return templates.render("explorer.html.jinja", index=index, blocks=blocks)


def _dataset(
    languages: Mapping[str, Mapping[str, epath.Path]],
    blocks: list[str],
    orders: dict[tuple[str, ...], int],
) -> dict[str, Any]:
    """The entry of the index for one benchmark; appends its `blocks`, and new lists of ids."""
    systems = list(in_order(dict.fromkeys(sorted(set().union(*languages.values())))))
    prompt_of: dict[str, str] = {}
    shown = []
    for language, paths in sorted(languages.items()):
        answers = {system: _Answers(path) for system, path in paths.items()}
        prompt_of |= {system: read.template for system, read in answers.items()}
        ids = tuple(dict.fromkeys(problem for read in answers.values() for problem in read.rows))
        if not ids:
            continue
        found = [answers.get(system) for system in systems]
        traces = _traces(found, ids)
        entry = {
            "code": language,
            "name": prompts.LANGUAGES.get(language, language),
            "ids": orders.setdefault(ids, len(orders)),
            "block": len(blocks),
        }
        blocks.append(_compressed(_questions(found, ids)))
        if any(traces):
            entry["traces"] = len(blocks)
            blocks.append(_compressed(traces))
        shown.append(entry)
    used = [prompt_of.get(system, "") for system in systems]
    return {"systems": systems, "templates": used, "languages": shown}


def _answer_files(folder: epath.Path) -> dict[str, dict[str, dict[str, epath.Path]]]:
    """Benchmark -> language -> system -> file, of one stage."""
    found: dict[str, dict[str, dict[str, epath.Path]]] = {}
    for path in sorted(folder.glob("*/*/*.jsonl")):
        system, benchmark = path.parent.parent.name, path.parent.name
        found.setdefault(benchmark, {}).setdefault(path.stem, {})[system] = path
    return found


class _Answers:
    """One system's answers to one language's questions, by id, and their choices' likelihoods."""

    def __init__(self, path: epath.Path):
        """Reads both files; raises a ValueError where a line is damaged."""
        header, self.rows = _read(path, _NEEDED)
        self.template: str = header.get("template", "")
        beside = path.parent / LIKELIHOOD / path.name
        self.likelihoods = _read(beside, ("id", "log_likelihoods"))[1] if beside.exists() else {}


def _read(
    path: epath.Path, names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The header of a file, and its rows with `names` by id; a last line cut off is left out."""
    header: dict[str, Any] | None = None
    rows, needed = {}, dict.fromkeys(names, schema.ANYTHING)
    for number, row in files.read_json_lines(path, _REMEDY, torn=True):
        where = f"{path}:{number}"
        if header is None:
            check_header(row, where, _REMEDY)
            header = row["header"]
        else:
            check_answer(row, where, _REMEDY)
            schema.check(row, needed, where, _REMEDY)
            if "trace" in row:
                row["trace"] = _compact(row)
            rows[row["id"]] = row
    return header or {}, rows


def _questions(found: Sequence[_Answers | None], ids: Sequence[str]) -> dict[str, Any]:
    """What explorer.js shows of one language: columns in the order of `ids`.

    `cells` has a list a system, of None where it has not answered.
    """
    merged = {problem: row for read in found if read for problem, row in read.rows.items()}
    asked = [merged[problem] for problem in ids]
    return {
        "questions": [row["question"] for row in asked],
        "answers": [row["answer"] for row in asked],
        "choices": [row.get("choices") for row in asked],
        "cells": [[_cell(read, problem) for problem in ids] for read in found],
    }


def _cell(read: _Answers | None, problem: str) -> dict[str, Any] | None:
    """One answer as explorer.js shows it; what can be derived or is empty is left out."""
    if read is None or problem not in read.rows:
        return None
    row = read.rows[problem]
    cell = {name: row.get(name) for name in ("output", "prediction", "correct")}
    other = [row.get("sound_prediction"), row.get("sound_correct")]
    if "sound_correct" in row and other != [row.get("prediction"), row.get("correct")]:
        cell["sound"] = other
    if row.get("executions"):
        cell["executions"] = row["executions"]
    if "trace" in row:
        cell["traced"] = True
    if weighed := read.likelihoods.get(problem):
        cell["likelihoods"] = weighed["log_likelihoods"]
    return cell


def _traces(found: Sequence[_Answers | None], ids: Sequence[str]) -> list[dict[int, Any]]:
    """A dictionary a system, from the place of a question in `ids` to its trace's columns."""
    return [
        {
            place: read.rows[problem]["trace"]
            for place, problem in enumerate(ids)
            if "trace" in read.rows.get(problem, {})
        }
        if read
        else {}
        for read in found
    ]


def _compact(row: Mapping[str, Any]) -> list[list[Any]]:
    """A trace's columns: texts, the base's texts, its probabilities, probabilities, moved.

    A text of the base is None where the base would have said the same token; numbers are whole
    thousandths. The replies to a solution's programs stand among the texts, without numbers, so
    that together these are the output.
    """
    trace = row["trace"]
    triples = zip(trace["tokens"], trace["base_tokens"], trace["base_text"], strict=True)
    columns = [
        trace["text"],
        [None if token == base else text for token, base, text in triples],
        *([round(1000 * number) for number in trace[name]] for name in _MOVES),
    ]
    return _with_replies(columns, row.get("output", ""))


def _with_replies(columns: list[list[Any]], output: str) -> list[list[Any]]:
    """A trace's columns, completed to the whole output; as they are where that is impossible."""
    if "".join(columns[0]) == output:
        return columns
    opening, closing = code.OUTPUT.split("{}")
    rows: list[tuple[Any, ...]] = []
    at = 0
    for text, *values in zip(*columns, strict=True):
        if rows and output.startswith(opening, at) and output.endswith(code.STOP, 0, at):
            end = output.find(closing, at) + len(closing)
            rows.append((output[at:end], *[None] * len(values)))
            at = end
        # A turn is cut behind the tag that ends it, in the middle of a token too.
        stop = output.find(code.STOP, max(0, at - len(code.STOP) + 1)) + len(code.STOP)
        end = min(at + len(text), stop) if stop > at else at + len(text)
        if not text.startswith(output[at:end]):
            return columns
        rows.append((output[at:end], *values))
        at = end
    if at < len(output):
        rows.append((output[at:], *[None] * (len(columns) - 1)))
    return [list(column) for column in zip(*rows, strict=True)]


def _compressed(content: Any) -> str:
    """JSON, gzip, base64: no character of it means anything to HTML."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(errors="backslashreplace"), mtime=0)).decode(
        "ascii"
    )
