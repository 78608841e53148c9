"""What a run's recorded config says: its models, how each system was made, what is finished."""

from collections.abc import Mapping, Sequence
from typing import Any

from qalign_jax.evaluation.records import by_alpha

Config = Mapping[str, Any]


def presets(config: Config) -> tuple[str, ...]:
    """The sizes of models that the recipe names, in the order of its stages."""
    found = []
    for stage in _stages(config).values():
        systems = stage.get("systems") or {}
        described = [system for system in systems.values() if isinstance(system, Mapping)]
        for part in (stage, *described):
            found += [part.get(key) for key in ("preset", "small_preset", "draft_preset")]
    return tuple(dict.fromkeys(preset for preset in found if preset))


def systems(config: Config) -> dict[str, str]:
    """System -> the stages that led to it, such as "base → question_alignment"."""
    stages, found = _stages(config), {}
    for stage in stages.values():
        if stage.get("kind") != "evaluate":
            continue
        for name, system in (stage.get("systems") or {}).items():
            made = _chain(stages, system["model"])
            moved = f"({system.get('expert')} − {system.get('antiexpert', '')})"
            for each, alpha in by_alpha(name, system.get("alpha", 1.0)):
                found[each] = f"{made} + {alpha:g} · {moved}" if system.get("expert") else made
        if stage.get("numbers_only"):
            found["numbers_only"] = "no model: guesses from a question's numbers, without its words"
    return found


def evaluations(config: Config) -> list[str]:
    """The stages that score systems, finished or not."""
    return [name for name, stage in _stages(config).items() if stage.get("kind") == "evaluate"]


def baseline(config: Config) -> str:
    """The system that an evaluation compares the others with, or ""."""
    found = [stage.get("baseline") for stage in _stages(config).values()]
    return next((name for name in found if name), "")


def notes(config: Config) -> list[str]:
    """The recipe's own words on where it departs from the paper: a text or a list of texts."""
    given = config.get("notes") or ()
    return [given] if isinstance(given, str) else [str(note) for note in given]


def facts(config: Config, done: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Name and value of what a run was; `done` is stage -> its done.json."""
    found = []
    if models := ", ".join(presets(config)):
        base = config.get("base", "random")
        found.append(("Model", models + ("" if base == "random" else f", from {base}")))
    if "seed" in config:
        found.append(("Seed", str(config["seed"])))
    if names := list(config.get("stages") or ()):
        left = [name for name in names if name not in done]
        state = f"{', '.join(left)} not finished" if left else "all finished"
        found.append(("Stages", f"{len(names)}, {state}"))
    if seconds := sum(stage.get("seconds") or 0 for stage in done.values()):
        found.append(("Time", duration(seconds)))
    return found


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, the two largest of them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _stages(config: Config) -> dict[str, Mapping[str, Any]]:
    found = {name: config.get(name) for name in config.get("stages") or ()}
    return {name: stage for name, stage in found.items() if isinstance(stage, Mapping)}


def _chain(stages: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """The stages from the first weights to this one."""
    chain: Sequence[str] = [name]
    while (init := stages.get(chain[0], {}).get("init")) and init not in chain:
        chain = [init, *chain]
    return " → ".join(chain)
