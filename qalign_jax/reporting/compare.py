"""Several runs on one page: seeds of one recipe are a group, and groups stand side by side."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from qalign_jax import files, settings
from qalign_jax.analysis.plots import Bar
from qalign_jax.reporting import stages, tables, templates
from qalign_jax.reporting.charts import Chart, Charts

# What may differ between the seeds of one recipe: where files are, and how a stage is computed.
_FREE = frozenset(
    ("seed", "path", "paths", "cache_dir", "mesh", "remat", "micro_batches", "slots", "save_every",
     "keep", "notes")
)  # fmt: skip


class Mean(NamedTuple):
    """A mean over runs, its 95 % interval (Student's t; None of one run), and every run's value."""

    mean: float
    interval: tuple[float, float] | None
    values: dict[str, float]  # by the run's label


@dataclasses.dataclass(frozen=True)
class Run:
    """`label` tells it from the others: its seed, or its folder where seeds are not enough."""

    path: epath.Path
    config: Mapping[str, Any]
    systems: Mapping[str, Any]
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one recipe; `differs` says in what from the first group."""

    name: str
    runs: Sequence[Run]
    differs: str


def write(runs: Sequence[str | os.PathLike], output: str | os.PathLike) -> epath.Path:
    """Writes the page that compares the runs in these folders, and returns its path.

    Raises:
      ValueError: an output that is a folder or no .html file, fewer than two folders of runs, one
        that is named twice, is none of a run or has no results, or a file that is damaged.
    """
    files.check_output(output, "output")
    path = epath.Path(output)
    if path.suffix != ".html":  # not a file of a run
        raise ValueError(f"--output={output}: expected a name that ends in .html")
    found = groups(read(runs))
    systems = [name for group in found for run in group.runs for name in run.systems]
    charts = Charts(list(stages.in_order(dict.fromkeys(systems))))
    page = templates.render(
        "compare.html.jinja",
        title="Comparison",
        systems=charts.keys(list(charts.look)),
        groups=found,
        headlines=[
            each
            for name in _benchmarks(found)
            for group in found
            for each in _headlines(group, name, len(found) > 1)
        ],
        benchmarks=[_benchmark(name, found, charts) for name in _benchmarks(found)],
    )
    files.write_text(path, page)
    return path


def read(runs: Sequence[str | os.PathLike]) -> list[Run]:
    """The runs in these folders."""
    if len(runs) < 2:
        raise ValueError(
            f"--compare={','.join(str(run) for run in runs)}: expected two runs or more, as in "
            "--compare RUN1 RUN2"
        )
    if any(not os.fspath(run) for run in runs):
        raise ValueError(
            f"--compare={','.join(map(str, runs))} has an empty name; name a folder between commas"
        )
    found: dict[str, Run] = {}
    for name in runs:
        path = epath.Path(name)
        place = os.path.realpath(path) if not files.is_remote(path) else os.fspath(path)
        if place in found:  # two paths may lead to one folder
            raise ValueError(f"--compare: {name} is named twice; name each run once")
        config, left = stages.read(path, "--compare")
        systems = {name: each for stage in left for name, each in stage.systems.items()}
        if not systems:
            raise ValueError(f"--compare: {name} has no results yet; run its evaluation first")
        found[place] = Run(path, config, stages.in_order(systems))
    return list(found.values())


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs by recipe, in the order given; seeds of one recipe are one group."""
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        recipe = json.dumps(_without(run.config), sort_keys=True)
        by_recipe.setdefault(recipe, []).append(run)
    firsts = [each[0] for each in by_recipe.values()]
    recipes = [_without(run.config) for run in firsts]
    names = [str(run.config.get("name") or run.path.name) for run in firsts]
    folders = [f"{name} ({run.path.name})" for name, run in zip(names, firsts, strict=True)]
    paths = [f"{name} ({run.path})" for name, run in zip(names, firsts, strict=True)]
    return [
        Group(name, _labelled(each), settings.differences(recipes[0], recipe))
        for name, recipe, each in zip(
            _distinct(names, folders, paths), recipes, by_recipe.values(), strict=True
        )
    ]


def over_runs(values: Mapping[str, float]) -> Mean:
    """The mean of one value a run, with Student's interval."""
    from scipy import stats  # half a second

    count, mean = len(values), sum(values.values()) / len(values)
    if count < 2:
        return Mean(mean, None, dict(values))
    variance = sum((value - mean) ** 2 for value in values.values()) / (count - 1)
    half = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance / count)
    return Mean(mean, (mean - half, mean + half), dict(values))


def accuracies(group: Group, benchmark: str) -> dict[str, dict[str, Mean]]:
    """System -> language or mean -> its accuracy over the group's runs."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for run in group.runs:
        for table in tables.tables(run.systems):
            for system, row in table.rows if table.benchmark == benchmark else ():
                for column, value in zip(table.columns, row, strict=True):
                    if value is not None:
                        by_run = values.setdefault(system, {}).setdefault(column, {})
                        by_run[run.label] = value
    return {
        system: {column: over_runs(by_run) for column, by_run in columns.items()}
        for system, columns in values.items()
    }


def differences(group: Group, benchmark: str) -> dict[tuple[str, str, str], Mean]:
    """System, baseline and mean -> the difference in points over the group's runs."""
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for run in group.runs:
        for row in tables.comparisons(run.systems).get(benchmark, ()):
            key = (row.system, row.baseline, row.mean)
            values.setdefault(key, {})[run.label] = row.difference
    return {key: over_runs(by_run) for key, by_run in values.items()}


def _without(value: Any) -> Any:
    """A config without what may differ between seeds, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without(inner) for key, inner in value.items() if key not in _FREE}
    return value


def _labelled(runs: Sequence[Run]) -> list[Run]:
    """Runs by their seeds; by folder or path where seeds do not tell them apart."""
    seeds = [f"seed {run.config['seed']}" for run in runs if "seed" in run.config]
    folders, paths = [run.path.name for run in runs], [str(run.path) for run in runs]
    labels = _distinct(seeds, folders, paths)
    return [dataclasses.replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def _distinct(*choices: list[str]) -> list[str]:
    """The first of the lists of names that tells all apart; the last one does."""
    return next(names for names in choices if len(set(names)) == len(choices[-1]))


def _benchmarks(found: Sequence[Group]) -> list[str]:
    every = (run.systems for group in found for run in group.runs)
    return list(dict.fromkeys(name for run in every for each in run.values() for name in each))


def _headlines(group: Group, benchmark: str, named: bool) -> list[dict[str, Any]]:
    """The difference that matters: qalign's, or else the first system's; none without a baseline.

    `named` says whether the group's name stands with it.
    """
    compared = differences(group, benchmark)
    chosen = [key for key in compared if key[0] == "qalign"] or list(compared)
    found = accuracies(group, benchmark)
    return [
        {
            "title": f"{benchmark}, {group.name}" if named else benchmark,
            "of": of,
            "system": system,
            "accuracy": found[system][of].mean,
            "baseline": baseline,
            "against": found[baseline][of].mean,
            "difference": compared[system, baseline, of],
            "runs": f"{len(group.runs)} runs" if len(group.runs) > 1 else "one run",
        }
        for system, baseline, of in chosen[:1]  # the mean without English comes first
    ]


def _benchmark(name: str, found: Sequence[Group], charts: Charts) -> dict[str, Any]:
    by_group = {group.name: accuracies(group, name) for group in found}
    return {
        "name": name,
        "chart": _side_by_side(name, by_group, charts) if len(found) > 1 else None,
        "groups": [
            _of_group(name, group, by_group[group.name], charts)
            for group in found
            if by_group[group.name]
        ],
    }


def _of_group(
    benchmark: str, group: Group, systems: Mapping[str, Mapping[str, Mean]], charts: Charts
) -> dict[str, Any]:
    bars = {
        system: {column: _bar(mean) for column, mean in columns.items()}
        for system, columns in systems.items()
    }
    labels = [run.label for run in group.runs]
    caption = "Per cent, one run."
    if len(labels) > 1:
        caption = (
            f"Per cent, means of {len(labels)} runs with 95 % intervals; dots are single runs."
        )
    present = list(dict.fromkeys(column for columns in systems.values() for column in columns))
    last = ("en", *tables.MEANS.values())
    columns = [column for column in present if column not in last]
    return {
        "group": group,
        "labels": labels,
        "columns": columns + [column for column in last if column in present],
        "systems": systems,
        "differences": differences(group, benchmark),
        "chart": charts.bars(bars, "Accuracy", caption, f"{benchmark}, {group.name}"),
    }


def _side_by_side(
    benchmark: str, by_group: Mapping[str, Mapping[str, Mapping[str, Mean]]], charts: Charts
) -> Chart:
    """The mean without English of every group, or the mean where there is English only."""
    bars: dict[str, dict[str, Bar]] = {}
    for group, systems in by_group.items():
        for system, columns in systems.items():
            mean = columns.get(tables.MEANS["non_english"]) or columns.get(tables.MEANS["average"])
            if mean:
                bars.setdefault(system, {})[group] = _bar(mean)
    caption = "Per cent in languages other than English, with 95 % intervals over runs."
    return charts.bars(bars, "Accuracy by recipe", caption, benchmark)


def _bar(mean: Mean) -> Bar:
    dots = tuple(mean.values.values()) if mean.interval else ()
    return Bar(mean.mean, mean.interval, dots=dots)
