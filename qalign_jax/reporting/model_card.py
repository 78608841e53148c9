"""The README.md of a model that goes to the Hugging Face Hub: how it was made, what it scores."""

import html
import re
from typing import Any

import jinja2
from etils import epath

from qalign_jax import files, schema
from qalign_jax.checkpoints import hf_config
from qalign_jax.checkpoints.part import split
from qalign_jax.checkpoints.record import read_record
from qalign_jax.data import prompts
from qalign_jax.models.config import LlamaConfig
from qalign_jax.reporting import provenance, stages, tables, trained

_SETTINGS = {"init?": schema.TEXT, "data?": {...: {"name": schema.TEXT}}}
# What Markdown reads as more than text, inside a line and inside a table.
_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")


def text(
    stage_dir: epath.Path,
    step: int,
    config: LlamaConfig,
    name: str,
    dtype: str,
    template: str,
    *,
    adapter_of: str = "",
    merged: str = "",
    from_int8: bool = False,
) -> str:
    """The card, Markdown with the Hub's metadata in front.

    Recipe, data and scores come from the stage's run where it is one: the stages that led to it,
    newest last, and the rows of every evaluation of it; a converted model has none of them.

    Args:
      adapter_of: the base, where the stage's adapter is alone.
      merged: the directory of an adapter that is merged into the stage's weights.
      from_int8: whether the weights are int8 ones, dequantised.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qalign_jax.reporting", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown
    )
    environment.filters["plain"] = _plain
    prompt = prompts.render(template, "{question}")
    ticks = max(map(len, re.findall("`+", prompt)), default=0)
    scores = [] if merged else _scores(stage_dir)
    own = trained.read(stage_dir)
    return environment.get_template("model_card.md.jinja").render(
        name=name,
        stage=stage_dir.name,
        step=step,
        parameters=f"{config.num_parameters:,}",
        adapter_parameters=f"{own.parameters:,}" if own else "",
        adapter_of=adapter_of,
        is_exported=bool(adapter_of) and hf_config.is_hf_directory(epath.Path(adapter_of)),
        merged=merged,
        from_int8=from_int8,
        dtype=dtype,
        prompt=prompt,
        fence="`" * max(3, ticks + 1),
        stages=_stages(stage_dir),
        scores=scores,
        languages=sorted({language for table in scores for language in table["languages"]}),
    )


def _stages(stage_dir: epath.Path) -> list[dict[str, Any]]:
    """The stages that led to the weights, first to last."""
    found, seen = [], set()
    while stage_dir not in seen and (record := read_record(stage_dir)):
        seen.add(stage_dir)
        settings, sources = record.settings, record.sources
        remedy = "it is not what a run writes; delete the folder and train the stage again"
        schema.check(settings, _SETTINGS, f"{stage_dir / 'stage.json'}", remedy)
        done = _json(stage_dir / "done.json")
        found.insert(
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
                "trained": trained.read(stage_dir),
            },
        )
        stage_dir = stage_dir.parent / split(settings.get("init", "none"))[0]
    return found


def _scores(stage_dir: epath.Path) -> list[dict[str, Any]]:
    """One table a benchmark of the systems that are this model alone."""
    recipe, found = stages.read_config(stage_dir.parent), []
    for evaluation in provenance.evaluations(recipe):
        scored = recipe[evaluation].get("systems", {})
        results = stages.read_results(stage_dir.parent / evaluation / "results.json")
        systems = {
            name: result
            for name, result in results.get("systems", {}).items()
            if name in scored
            and scored[name]["model"] == stage_dir.name
            and not scored[name].get("expert")
        }
        for table in tables.tables(systems):
            languages = [column for column in table.columns if column in prompts.LANGUAGES]
            found.append(
                {"benchmark": table.benchmark, "columns": table.columns, "rows": table.rows,
                 "languages": languages}
            )  # fmt: skip
    return found


def _plain(value: Any) -> str:
    """A value as Markdown that shows it as it is, on one line; HTML in it is text too."""
    escaped = html.escape(" ".join(str(value).split()), quote=False)
    return _MARKUP.sub(lambda found: f"\\{found[0]}", escaped)


def _json(file: epath.Path) -> dict[str, Any]:
    """The object in a file, empty where there is no file."""
    remedy = "delete it and done.json beside it, and start the same run again"
    return files.read_object(file, remedy) if file.exists() else {}
