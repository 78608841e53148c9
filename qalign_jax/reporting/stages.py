"""What the stages of a run left in their folders."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from qalign_jax import files

_REMEDY = "delete it and done.json beside it, and start the same run again"
_FIRST = ("base", "ralign", "qalign")  # in every table and chart, then the others in their order


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage left in its folder; absent files give empty values."""

    name: str
    results: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]  # by step, each once
    packing: Mapping[str, Any] | None
    done: Mapping[str, Any] | None
    pictures: Sequence[tuple[str, str]]  # name and base64 text of PNG files
    files: Sequence[str]

    @property
    def is_there(self) -> bool:
        """Whether the folder holds anything of a stage."""
        return bool(self.results or self.metrics or self.packing or self.pictures)

    @property
    def systems(self) -> dict[str, Any]:
        """The systems that an evaluation scored."""
        return in_order(self.results.get("systems") or {})

    @property
    def representations(self) -> dict[str, Any]:
        """System -> `layers` and `pca`."""
        return (self.results.get("representations") or {}).get("systems") or {}

    @property
    def reasoning(self) -> dict[str, Any]:
        """Benchmark -> system -> its agreement with English solutions."""
        return self.results.get("reasoning") or {}

    @property
    def data_scale(self) -> dict[str, Any]:
        """Benchmark -> the points of its curve."""
        return self.results.get("data_scale") or {}

    @property
    def is_drawn(self) -> bool:
        """Whether the page draws the stage's pictures itself."""
        return bool(self.representations or self.reasoning or self.data_scale)


def read(workdir: epath.Path, flag: str = "--workdir") -> tuple[dict[str, Any], list[Stage]]:
    """The config and the stages of a run, in the recipe's order, then other folders.

    `flag` is what named the folder.

    Raises:
      ValueError: there is no such folder, or nothing of a run in it, or a file is damaged.
    """
    if not workdir.is_dir():
        raise ValueError(f"{flag}={workdir}: there is no such folder; give a run's workdir")
    config = _json(workdir / "config.json")
    there = sorted(path.name for path in workdir.iterdir() if path.is_dir())
    recipe = [name for name in (config or {}).get("stages") or () if name in there]
    names = recipe + [name for name in there if name not in recipe]
    stages = [_stage(workdir / name) for name in names]
    if config is None and not any(
        s.results or s.metrics or s.packing or s.pictures for s in stages
    ):
        raise ValueError(
            f"{workdir} holds no config.json, results.json or metrics.jsonl; give a run's workdir"
        )
    return config or {}, stages


def in_order(systems: Mapping[str, Any]) -> dict[str, Any]:
    """The systems as they are shown: base, ralign and qalign first."""
    first = [name for name in _FIRST if name in systems]
    return {name: systems[name] for name in (*first, *systems)}


def _stage(folder: epath.Path) -> Stage:
    paths = sorted(folder.iterdir())
    return Stage(
        name=folder.name,
        results=_results(folder / "results.json"),
        metrics=_metrics(folder / "metrics.jsonl"),
        packing=_json(folder / "packing.json"),
        done=_json(folder / "done.json"),
        pictures=[
            (path.stem, base64.b64encode(path.read_bytes()).decode())
            for path in paths
            if path.suffix == ".png"
        ],
        files=[path.name + "/" * path.is_dir() for path in paths if path.name[0] != "."],
    )


def _results(path: epath.Path) -> dict[str, Any]:
    """A stage's results; those of systems are objects down to a benchmark's."""
    results = _json(path) or {}
    systems = results.get("systems") or {}
    levels = [systems, *(systems.values() if isinstance(systems, dict) else ())]
    levels += [each for found in levels[1:] if isinstance(found, dict) for each in found.values()]
    if not all(isinstance(level, dict) for level in levels):
        raise ValueError(
            f"{path}: expected systems, their benchmarks and results as objects; {_REMEDY}"
        )
    return results


def _metrics(path: epath.Path) -> list[dict[str, Any]]:
    """A training stage's lines, in the order of their steps."""
    if not path.exists():
        return []
    # After a kill there may be repeated steps and a torn last line.
    steps: dict[int, dict[str, Any]] = {}
    for _, row in files.read_json_lines(path, "delete the line", torn=True):
        if isinstance(row, dict) and "loss" in row and "step" in row:
            steps[row["step"]] = row
    return [steps[step] for step in sorted(steps)]


def _json(path: epath.Path) -> dict[str, Any] | None:
    return files.read_object(path, _REMEDY) if path.exists() else None
