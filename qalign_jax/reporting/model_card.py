"""The README.md of a model that goes to the Hugging Face Hub: how it was made, what it scores."""

from typing import Any

import jinja2
from etils import epath

from qalign_jax import files
from qalign_jax.checkpoints.record import read_record
from qalign_jax.data import prompts
from qalign_jax.models.config import LlamaConfig
from qalign_jax.reporting import tables


def text(
    stage_dir: epath.Path, step: int, config: LlamaConfig, name: str, dtype: str, template: str
) -> str:
    """The card, Markdown with the Hub's metadata in front.

    Recipe, data and scores come from the stage's run where it is one: the stages that led to it,
    newest last, and the rows of every evaluation of it; a converted model has none of them.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qalign_jax.reporting", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown
    )
    scores = _scores(stage_dir)
    return environment.get_template("model_card.md.jinja").render(
        name=name,
        stage=stage_dir.name,
        step=step,
        parameters=f"{config.num_parameters:,}",
        dtype=dtype,
        prompt=prompts.render(template, "{question}"),
        stages=_stages(stage_dir),
        scores=scores,
        languages=sorted({language for table in scores for language in table["languages"]}),
    )


def _stages(stage_dir: epath.Path) -> list[dict[str, Any]]:
    """The stages that led to the weights, first to last."""
    stages = []
    while record := read_record(stage_dir):
        settings, sources = record.settings, record.sources
        done = _json(stage_dir / "done.json")
        stages.insert(
            0,
            {
                "name": stage_dir.name,
                "init": settings.get("init") or sources.get("source", ""),
                "adapter": sources.get("adapter", ""),
                "data": [
                    source["name"] + (f" {source['part']}" if source.get("part") else "")
                    for source in settings.get("data", {}).values()
                ],
                "steps": done.get("steps", "unfinished") if settings else "",
                "rows": done.get("rows", ""),
                "length": settings.get("length", ""),
                "lr": settings.get("lr", ""),
            },
        )
        stage_dir = stage_dir.parent / settings.get("init", "none")
    return stages


def _scores(stage_dir: epath.Path) -> list[dict[str, Any]]:
    """One table a benchmark of the systems that are this model alone."""
    recipe, found = _json(stage_dir.parent / "config.json"), []
    for evaluation in recipe.get("stages", ()):
        scored = recipe[evaluation].get("systems", {})
        results = _json(stage_dir.parent / evaluation / "results.json").get("systems", {})
        systems = {
            name: result
            for name, result in results.items()
            if scored.get(name, {}).get("model") == stage_dir.name and not scored[name]["expert"]
        }
        for table in tables.tables(systems):
            languages = [column for column in table.columns if len(column) == 2]
            found.append(
                {"benchmark": table.benchmark, "columns": table.columns, "rows": table.rows,
                 "languages": languages}
            )  # fmt: skip
    return found


def _json(file: epath.Path) -> dict[str, Any]:
    """The object in a file, empty where there is no file."""
    remedy = "delete it and done.json beside it, and start the same run again"
    return files.read_object(file, remedy) if file.exists() else {}
