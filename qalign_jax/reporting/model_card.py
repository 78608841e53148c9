"""The README.md of a model that goes to the Hugging Face Hub: how it was made, what it scores."""

import json
from typing import Any

import jinja2
from etils import epath

from qalign_jax.data import prompts
from qalign_jax.models.llama import LlamaConfig
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
    """What shaped the weights, first to last."""
    stages = []
    while (stage_dir / "stage.json").exists():
        record = json.loads((stage_dir / "stage.json").read_text())
        settings, made_from = record.get("matters", {}), record["made_from"]
        done = stage_dir / "done.json"
        done = json.loads(done.read_text()) if done.exists() else {}
        stages.insert(
            0,
            {
                "name": stage_dir.name,
                "init": settings.get("init") or made_from.get("source", ""),
                "adapter": made_from.get("adapter", ""),
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
    file = stage_dir.parent / "config.json"
    if not file.exists():
        return []
    recipe = json.loads(file.read_text())
    found = []
    for evaluation in recipe.get("stages", ()):
        results = stage_dir.parent / evaluation / "results.json"
        if recipe[evaluation]["kind"] != "evaluate" or not results.exists():
            continue
        systems = {
            name: result
            for name, result in json.loads(results.read_text())["systems"].items()
            if recipe[evaluation]["systems"].get(name, {}).get("model") == stage_dir.name
            and not recipe[evaluation]["systems"][name]["expert"]
        }
        for table in tables.tables(systems):
            languages = [column for column in table.columns if len(column) == 2]
            found.append(
                {"benchmark": table.benchmark, "columns": table.columns, "rows": table.rows,
                 "languages": languages}
            )  # fmt: skip
    return found
