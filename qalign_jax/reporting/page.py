"""The report: one self-contained HTML page from the files of a run's stages."""

import base64
import json
import os
from typing import Any

import jinja2
from etils import epath

from qalign_jax import files
from qalign_jax.reporting import tables

_CONSISTENCY = ("language", "prediction")
_CAPTIONS = {
    "space": "Hidden states of the same questions, means over a question's tokens, in two "
    "principal components of each system",
    "layers": "By layer: how much nearer translations are than other questions, how often they "
    "are found, and the share of variance between languages",
    "curve": "Accuracy against the question pairs of stage I",
}


def write(workdir: str | os.PathLike) -> epath.Path:
    """Writes `<workdir>/report.html` from the stages' files and returns its path.

    Reads config.json and, in every stage's folder, results.json, metrics.jsonl and packing.json;
    each may be absent, so that an unfinished run has a page too.

    Raises:
      ValueError: there is no such folder, or nothing of a run in it, or a file is damaged.
    """
    workdir = epath.Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"--workdir={workdir}: there is no such folder; give a run's workdir")
    config = _json(workdir / "config.json")
    stages = [_stage(workdir / name) for name in _stage_names(workdir, config)]
    trained = [stage for stage in stages if stage["training"] or stage["packing"]]
    evaluated = [stage for stage in stages if stage["systems"]]
    analysed = [stage for stage in stages if stage["pictures"]]
    if not (config or trained or evaluated or analysed):
        raise ValueError(
            f"{workdir} holds no config.json, results.json or metrics.jsonl; give a run's workdir"
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qalign_jax.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        title=(config or {}).get("name") or workdir.name,
        fast=(config or {}).get("fast", False),
        captions=_CAPTIONS,
        evaluated=evaluated,
        analysed=analysed,
        trained=trained,
        notes=_notes(config),
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    )
    path = workdir / "report.html"
    files.write_text(path, page)
    return path


def _stage_names(workdir: epath.Path, config: Any) -> list[str]:
    """The stages' folders in the recipe's order, then other folders."""
    there = sorted(path.name for path in workdir.iterdir() if path.is_dir())
    recipe = [name for name in (config or {}).get("stages") or () if name in there]
    return recipe + [name for name in there if name not in recipe]


def _stage(folder: epath.Path) -> dict[str, Any]:
    results = _json(folder / "results.json") or {}
    systems = results.get("systems") or {}
    found: dict[str, list[tuple[str, tables.Table]]] = {}
    for reader, title in tables.READERS.items():
        for table in tables.tables(systems, reader):
            found.setdefault(table.benchmark, []).append((title, table))
    return {
        "name": folder.name,
        "systems": systems,
        "tables": found,
        "comparisons": tables.comparisons(systems),
        "details": {benchmark: _details(systems, benchmark) for benchmark in found},
        "pictures": _pictures(folder),
        "training": _training(folder / "metrics.jsonl"),
        "packing": _json(folder / "packing.json"),
    }


def _details(systems: dict[str, Any], benchmark: str) -> list[dict[str, Any]]:
    """Consistency and executions of the systems that have some."""
    rows = []
    for system, results in systems.items():
        result = results.get(benchmark, {})
        consistency = result.get("consistency", {})
        statuses = result.get("executions", {}).items()
        row = {
            "system": system,
            "executed": ", ".join(f"{status} {share:.0f}" for status, share in statuses),
            **{key: consistency.get(key, {}).get("non_english") for key in _CONSISTENCY},
        }
        if row["executed"] or consistency:
            rows.append(row)
    return rows


def _pictures(folder: epath.Path) -> list[tuple[str, str]]:
    """Name and base64 text of the PNG files that an analysis left."""
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".png")
    return [(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in paths]


def _training(path: epath.Path) -> dict[str, Any] | None:
    """First and last loss, steps, and the middle throughput of a stage's metrics."""
    if not path.exists():
        return None
    # After a kill there may be repeated steps and a torn last line.
    steps: dict[int, dict[str, Any]] = {}
    for _, row in files.read_json_lines(path, "delete the line", torn=True):
        if isinstance(row, dict) and "loss" in row and "step" in row:
            steps[row["step"]] = row
    if not steps:
        return None
    rows = [steps[step] for step in sorted(steps)]
    speeds = sorted(row["tokens_per_second"] for row in rows if row.get("tokens_per_second"))
    return {
        "steps": rows[-1]["step"],
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
        "mfu": rows[-1].get("mfu"),
    }


def _notes(config: Any) -> list[str]:
    """The recipe's own words on where it departs from the paper: a text or a list of texts."""
    notes = (config or {}).get("notes") or ()
    return [notes] if isinstance(notes, str) else [str(note) for note in notes]


def _json(path: epath.Path) -> dict[str, Any] | None:
    remedy = "delete it and done.json beside it, and start the same run again"
    return files.read_object(path, remedy) if path.exists() else None
