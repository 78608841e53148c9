"""The report: one self-contained HTML page from the files of a run's stages."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from qalign_jax import files
from qalign_jax.analysis.plots import Bar
from qalign_jax.reporting import explorer, provenance, published, tables, templates
from qalign_jax.reporting.charts import Chart, Charts
from qalign_jax.reporting.stages import Stage, in_order, read

_CONSISTENCY = {
    "language": "Answers in the question's language",
    "prediction": "Predictions equal to the English one of the same question",
}


def write(workdir: str | os.PathLike) -> epath.Path:
    """Writes `<workdir>/report.html` from the stages' files and returns its path.

    Reads config.json and, in every stage's folder, results.json, metrics.jsonl, packing.json,
    model.json and done.json; each may be absent, so that an unfinished run has a page too.

    Raises:
      ValueError: there is no such folder, or nothing of a run in it, or a file is damaged.
    """
    workdir = epath.Path(workdir)
    config, stages = read(workdir)
    evaluated = [stage for stage in stages if stage.systems]
    asked = provenance.evaluations(config) or [stage.name for stage in evaluated]
    names = [system for stage in evaluated for system in stage.systems]
    names += [system for stage in stages for system in stage.representations]
    names += [name for s in stages for each in s.reasoning.values() for name in in_order(each)]
    charts = Charts(list(dict.fromkeys(names)))
    presets = provenance.presets(config)
    done = {stage.name: stage.done for stage in stages if stage.done is not None}
    page = templates.render(
        "page.html.jinja",
        title=config.get("name") or workdir.name,
        fast=config.get("fast", False),
        notes=provenance.notes(config),
        facts=provenance.facts(config, done),
        made=in_order(provenance.systems(config)),
        baseline=provenance.baseline(config),
        systems=charts.keys(list(charts.look)),
        headlines=_headlines(evaluated),
        evaluated=[_evaluation(stage, charts, presets) for stage in evaluated],
        marks=published.MARKS,
        consistent=_consistent(evaluated, charts),
        drafted=_drafted(evaluated),
        explorer=explorer.section(workdir, asked),
        curves=[charts.training(s.name, s.metrics) for s in stages if s.metrics],
        trained=[_training(stage) for stage in stages if stage.metrics or stage.packing],
        parts=_parts(stages),
        represented=[_representations(s, charts) for s in stages if s.representations],
        reasoned=_reasoning(stages, charts),
        scaled=[charts.data_scale(stage.data_scale) for stage in stages if stage.data_scale],
        pictures=[stage for stage in stages if stage.pictures and not stage.is_drawn],
        workdir=workdir,
        stages=[stage for stage in stages if stage.files],
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    )
    path = workdir / "report.html"
    files.write_text(path, page)
    return path


def _headlines(evaluated: Iterable[Stage]) -> list[dict[str, Any]]:
    """The comparison that matters of every benchmark: qalign's, or else the first system's."""
    found = []
    for stage in evaluated:
        for benchmark, rows in tables.comparisons(stage.systems).items():
            chosen = [row for row in rows if row.system == "qalign"] or rows
            row = chosen[0]  # the mean without English comes first
            key = next(key for key, word in tables.MEANS.items() if word == row.mean)
            against = stage.systems[row.baseline][benchmark].get(key)
            found.append({"benchmark": benchmark, "row": row, "against": against})
    return found


def _evaluation(stage: Stage, charts: Charts, presets: tuple[str, ...]) -> dict[str, Any]:
    """The tables and the chart of every benchmark of a stage."""
    found: dict[str, list[tuple[str, tables.Table]]] = {}
    for reader, title in tables.READERS.items():
        for table in tables.tables(stage.systems, reader):
            found.setdefault(table.benchmark, []).append((title, table))
    compared = tables.comparisons(stage.systems)
    return {
        "name": stage.name,
        "benchmarks": [
            {
                "name": benchmark,
                "chart": charts.accuracy(readers[0][1]),
                "readers": readers,
                "compared": compared.get(benchmark),
                "published": _published(benchmark, presets),
            }
            for benchmark, readers in found.items()
        ],
    }


def _published(benchmark: str, presets: tuple[str, ...]) -> dict[str, Any] | None:
    rows = published.rows(benchmark, presets)
    by_language = [row for row in rows if row.languages]
    consistency = published.consistency(benchmark, presets)
    languages = list(dict.fromkeys(key for row in by_language for key in row.languages))
    if not rows:
        return None
    return {
        "rows": rows,
        "by_language": by_language,
        "consistency": consistency,
        "languages": languages,
        "marks": [mark for mark in published.MARKS if mark in {row.mark for row in rows}],
    }


def _consistent(evaluated: Iterable[Stage], charts: Charts) -> list[dict[str, Any]]:
    """A benchmark's consistency: a chart each of answers' language and predictions, and a table."""
    found = []
    for stage in evaluated:
        for benchmark in dict.fromkeys(name for each in stage.systems.values() for name in each):
            rows = _details(stage.systems, benchmark)
            drawn = [
                charts.bars(bars, title, "Per cent.", benchmark)
                for key, title in _CONSISTENCY.items()
                if (bars := _consistency_bars(stage.systems, benchmark, key))
            ]
            if rows:
                found.append({"benchmark": benchmark, "charts": drawn, "rows": rows})
    return found


def _drafted(evaluated: Iterable[Stage]) -> list[tuple[str, tables.Table]]:
    """A heading and a table of each figure of drafting, of each benchmark that has some."""
    return [
        (f"{table.benchmark}: {title}", table)
        for stage in evaluated
        for figure, title in tables.DRAFTS.items()
        for table in tables.tables(stage.systems, figure)
    ]


def _consistency_bars(
    systems: Mapping[str, Any], benchmark: str, key: str
) -> dict[str, dict[str, Bar]]:
    """System -> language -> its bar, the mean without English last."""
    bars = {}
    for system, results in systems.items():
        shares = results.get(benchmark, {}).get("consistency", {}).get(key, {})
        means = [name for name in tables.MEANS if name in shares]  # behind the languages
        order = [name for name in shares if name not in means] + means
        named = {tables.MEANS.get(name, name): Bar(shares[name]) for name in order}
        if named:
            bars[system] = named
    return bars


def _details(systems: Mapping[str, Any], benchmark: str) -> list[dict[str, Any]]:
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


def _training(stage: Stage) -> dict[str, Any]:
    """First and last loss, steps, the middle throughput, and how the examples were packed."""
    packing, rows = stage.packing or {}, stage.metrics
    speeds = sorted(row["tokens_per_second"] for row in rows if row.get("tokens_per_second"))
    padded, positions = packing.get("padded_positions"), packing.get("positions")
    return {
        "name": stage.name,
        "steps": rows[-1]["step"] if rows else None,
        "losses": [rows[place]["loss"] for place in (0, -1)] if rows else [None, None],
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
        **{key: packing.get(key) for key in ("examples", "dropped", "truncated", "trained_tokens")},
        "efficiency": packing.get("efficiency"),
        "saved": padded / positions if padded and positions else None,
    }


def _parts(stages: Iterable[Stage]) -> list[Stage]:
    """The training stages, in a run where one of them trained a part of its model."""
    found = [stage for stage in stages if stage.trained and (stage.metrics or stage.packing)]
    return found if any(stage.trained and stage.trained.base for stage in found) else []


def _representations(stage: Stage, charts: Charts) -> dict[str, Any]:
    content = stage.results["representations"]
    systems = stage.representations
    projected = {system: found["pca"] for system, found in systems.items()}
    layers = {system: found["layers"] for system, found in systems.items()}
    languages = list(next(iter(projected.values()))["points"])
    return {
        "name": stage.name,
        "questions": content["questions"],
        "space": charts.space(projected),
        "languages": charts.languages(languages),
        "layers": charts.by_layer(layers, content["retrieval_by_chance"]),
    }


def _reasoning(stages: Iterable[Stage], charts: Charts) -> list[tuple[str, Chart]]:
    """Benchmark and chart of the agreement with English solutions."""
    return [
        (benchmark, charts.agreement(in_order(systems), benchmark))
        for stage in stages
        for benchmark, systems in stage.reasoning.items()
    ]
