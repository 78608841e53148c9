"""What the stages of a run left in their folders."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from qalign_jax import files, schema
from qalign_jax.evaluation.records import check_systems
from qalign_jax.reporting import trained
from qalign_jax.reporting.trained import Trained

_REMEDY = "delete it and done.json beside it, and start the same run again"
_AGREEMENT = schema.Maybe(schema.PERCENT)
_FIGURES = {"average": {**dict.fromkeys(("nearer", "to_english", "from_english"), schema.NUMBER)}}
_LAYER = schema.Leaf("a layer's number", lambda name: name.isdecimal() and len(name) < 4)
_REPRESENTATIONS = {
    "questions": schema.whole(),
    "retrieval_by_chance": schema.PERCENT,
    "systems": {
        ...: {
            "layers": {...: {"centred": _FIGURES, "between_languages": schema.NUMBER}},
            "pca": {
                "layer": schema.whole(),
                "explained": (schema.NUMBER, schema.NUMBER),
                "points": {...: [(schema.NUMBER, schema.NUMBER)]},
            },
        }
    },
}
# What the page shows of results.json, beside the systems of an evaluation (evaluation/records.py).
_RESULTS = {
    "reasoning?": {...: {...: {...: {"all": _AGREEMENT, "by_chance": _AGREEMENT}}}},
    "data_scale?": {
        ...: [
            {
                "system": schema.TEXT,
                "pairs": schema.whole(),
                "average": schema.PERCENT,
                "non_english": schema.PERCENT,
            }
        ]
    },
}
_MEASURES = {
    "step": schema.whole(),
    **dict.fromkeys(("loss?", "tokens_per_second?"), schema.Maybe(schema.NUMBER)),
    "learning_rate?": schema.number(0, 1e39),  # of a recipe, whatever comes of it
}
_PACKING = dict.fromkeys(
    ("examples?", "dropped?", "truncated?", "trained_tokens?", "efficiency?", "padded_positions?",
     "positions?"), schema.Maybe(schema.NUMBER)
)  # fmt: skip
_NOTES = schema.Leaf(
    "text or a list of texts",
    lambda given: (
        isinstance(given, str)
        or (isinstance(given, list) and all(isinstance(note, str) for note in given))
    ),
)
_CONFIG = {"name?": schema.TEXT, "stages?": [schema.TEXT], "notes?": _NOTES}
_STAGE = {
    **dict.fromkeys(("kind?", "init?", "preset?", "baseline?"), schema.TEXT),
    "systems?": schema.ANYTHING,  # of an evaluation, _SYSTEM by name
}
_ALPHA = schema.Leaf(
    "a number or a list of numbers",
    lambda given: (
        all(map(schema.NUMBER.takes, given))
        if isinstance(given, list)
        else schema.NUMBER.takes(given)
    ),
)
_SYSTEM = {
    "model": schema.TEXT,
    **dict.fromkeys(("expert?", "antiexpert?", "preset?", "small_preset?"), schema.TEXT),
    **dict.fromkeys(("draft?", "draft_preset?", "draft_tokens?"), schema.TEXT),
    "alpha?": _ALPHA,
}
_FIRST = ("base", "ralign", "qalign")  # in every table and chart, then the others in their order


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage left in its folder; absent files give empty values."""

    name: str
    results: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]  # by step, each once
    packing: Mapping[str, Any] | None
    trained: Trained | None
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
    config = read_config(workdir)
    there = sorted(path.name for path in workdir.iterdir() if path.is_dir())
    recipe = [name for name in dict.fromkeys(config.get("stages") or ()) if name in there]
    names = recipe + [name for name in there if name not in recipe]
    stages = [_stage(workdir / name) for name in names]
    if not config and not any(stage.is_there for stage in stages):
        raise ValueError(
            f"{workdir} holds no config.json, results.json or metrics.jsonl; give a run's workdir"
        )
    return config, stages


def read_config(workdir: epath.Path) -> dict[str, Any]:
    """A run's recorded recipe, empty where there is none; what the page shows of it has its shape.

    Raises:
      ValueError: it is damaged.
    """
    path, remedy = workdir / "config.json", "start the same run again, which writes it"
    config = _json(path, _CONFIG, remedy)
    for name in config.get("stages", ()):
        stage = config.get(name)
        schema.check(stage or {}, _STAGE, str(path), remedy, name)
        if stage and stage.get("kind") == "evaluate":
            schema.check(stage, {"systems?": {...: _SYSTEM}}, str(path), remedy, name)
    return config


def in_order(systems: Mapping[str, Any]) -> dict[str, Any]:
    """The systems as they are shown: base, ralign and qalign first."""
    first = [name for name in _FIRST if name in systems]
    return {name: systems[name] for name in (*first, *systems)}


def _stage(folder: epath.Path) -> Stage:
    paths = sorted(folder.iterdir())
    return Stage(
        name=folder.name,
        results=read_results(folder / "results.json"),
        metrics=_metrics(folder / "metrics.jsonl"),
        packing=_json(folder / "packing.json", _PACKING) or None,
        trained=trained.read(folder),
        done=_json(folder / "done.json", {"seconds?": schema.number(0)}) or None,
        pictures=[
            (path.stem, base64.b64encode(path.read_bytes()).decode())
            for path in paths
            if path.suffix == ".png" and path.is_file()
        ],
        files=[path.name + "/" * path.is_dir() for path in paths if path.name[0] != "."],
    )


def read_results(path: epath.Path) -> dict[str, Any]:
    """A stage's results, of the shapes that evaluations and analyses write; empty without a file.

    Raises:
      ValueError: they are damaged.
    """
    results = _json(path, _RESULTS)
    check_systems(results.get("systems", {}), str(path), _REMEDY)
    if represented := results.get("representations"):
        schema.check(represented, _REPRESENTATIONS, str(path), _REMEDY, "representations")
        for system, found in represented["systems"].items():
            at = f"representations.systems.{system}"
            for layer in found["layers"]:
                schema.check(layer, _LAYER, str(path), _REMEDY, f"a key of {at}.layers")
            if not (points := found["pca"]["points"]) or not all(points.values()):
                raise ValueError(f"{path}: {at}.pca.points lacks a language's points; {_REMEDY}")
    return results


def _metrics(path: epath.Path) -> list[dict[str, Any]]:
    """A training stage's lines, in the order of their steps."""
    if not path.exists():
        return []
    # After a kill there may be repeated steps and a torn last line.
    steps: dict[int, dict[str, Any]] = {}
    remedy = "delete the line"
    rows = files.read_json_lines(path, remedy, torn=True, parse_constant=lambda name: None)
    for number, row in rows:
        schema.check(row, _MEASURES, f"{path}:{number}", remedy)
        if row.get("loss") is not None:
            steps[row["step"]] = row
    return [steps[step] for step in sorted(steps)]


def _json(path: epath.Path, shape: Any, remedy: str = _REMEDY) -> dict[str, Any]:
    """The object in a file, of a shape; empty where there is no file."""
    if not path.exists():
        return {}
    found = files.read_object(path, remedy)
    schema.check(found, shape, str(path), remedy)
    return found
