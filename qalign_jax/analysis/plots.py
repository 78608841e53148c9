"""Pictures of results; each function takes what results.json holds and returns a Figure.

A stage saves it as a PNG, the report page draws the same Figure as SVG. Artists carry notes, which
the page turns into tooltips and into classes by which a system's marks are hidden.
"""

import io
import itertools
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qalign_jax import files

# Told apart by colour-blind readers, and at least 2.9:1 against white.
PALETTE = (
    "#7a828c", "#d98200", "#0b62a8", "#0a8f72", "#8b5a2b", "#b8478f", "#3a9bd9", "#8d8500",
    "#cc4125", "#6f52c4", "#3b4a3f",
)  # fmt: skip
INK, PAPER = "#000000", "#ffffff"
MARKERS = ("o", "^", "s", "D", "v")  # 55 languages differ in one or the other
# Systems of the recipes have the same colour in every picture and run.
_PLACES = {
    "base": 0, "ralign": 1, "qalign": 2, "aligned": 3, "large": 4, "large_proxy": 5,
    "numbers_only": 6,
}  # fmt: skip
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,  # names may hold "$"
}
styled = matplotlib.rc_context(_STYLE)  # a decorator of what draws


class Bar(NamedTuple):
    """A bar: its height, a whisker, a line across (as agreement by chance), and dots over it."""

    value: float
    interval: Sequence[float] | None = None
    across: float | None = None
    dots: Sequence[float] = ()


class Look(NamedTuple):
    """The colour of a system and its marker in lines."""

    colour: str
    marker: str


Looks = Mapping[str, Look]


def looks(systems: Iterable[str]) -> dict[str, Look]:
    """A look for every system, in the order given; those of the recipes have their own."""
    systems = list(dict.fromkeys(systems))
    taken = {_PLACES[name] for name in systems if name in _PLACES}
    free = (place for place in itertools.count() if place not in taken)
    places = {name: _PLACES[name] if name in _PLACES else next(free) for name in systems}
    return {name: _look(place) for name, place in places.items()}


def _look(place: int) -> Look:
    return Look(PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)])


def language_looks(languages: Iterable[str]) -> dict[str, Look]:
    """A look for every language in the order given; English is drawn as text is."""
    found = {language: _look(place) for place, language in enumerate(languages)}
    return {
        language: look._replace(colour=INK) if language == "en" else look
        for language, look in found.items()
    }


def note(artist: Artist, *, system: str = "", titles: Sequence[str] = ()) -> None:
    """Notes the system that a mark belongs to and the tooltips of its points, or of all of it."""
    artist.set_gid(json.dumps({"system": system, "titles": list(titles)}))


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the picture as a PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    files.write_bytes(path, image.getvalue())


@styled
def representation_space(projected: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A panel a system, a look a language.

    `projected`: system -> `layer`, and what `representations.project` returns of it.
    """
    figure = Figure(figsize=(1 + 4 * len(projected), 4.6), layout="constrained")
    panels = figure.subplots(1, len(projected), squeeze=False)[0]
    for axes, (system, found) in zip(panels, projected.items(), strict=True):
        for language, look in language_looks(found["points"]).items():
            [points] = axes.plot(
                *zip(*found["points"][language], strict=True), label=language, linestyle="none",
                color=look.colour, marker=look.marker, markersize=3.8, alpha=0.7,
                markeredgewidth=0,
            )  # fmt: skip
            note(points, titles=[language])
        first, second = found["explained"]
        axes.set(
            title=f"{system}, layer {found['layer']}",
            xlabel=f"component 1 ({first:.0%} of variance)",
            ylabel=f"component 2 ({second:.0%})",
        )
        axes.tick_params(labelsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", markerscale=1.6)
    return figure


def _both_ways(figures: Mapping[str, Any]) -> float:
    average = figures["centred"]["average"]
    return (average["to_english"] + average["from_english"]) / 2


# Measure of a layer -> title, label of the axis, its limits, and how it is read.
MEASURES = {
    "nearness": (
        "How much nearer translations are", "cosine, less that of other questions", (None, None),
        lambda figures: figures["centred"]["average"]["nearer"],
    ),
    "retrieval": (
        "Retrieval of translations", "top-1 accuracy (%), both ways", (0, 102), _both_ways,
    ),
    "between": (
        "Variance between languages", "share of the layer's variance", (0, None),
        lambda figures: figures["between_languages"],
    ),
}  # fmt: skip


@styled
def by_layer(
    systems: Mapping[str, Mapping[str, Any]],
    chance: float,
    measures: Sequence[str] = tuple(MEASURES),
    look: Looks | None = None,
) -> Figure:
    """Nearness, retrieval and distance of languages by layer: a panel a measure, a line a system.

    Args:
      systems: system -> layer -> as `representations.compare` returns.
      chance: retrieval accuracy by chance, in percent.
    """
    look = look or looks(systems)
    figure = Figure(figsize=(4.0 * len(measures), 4), layout="constrained")
    panels = dict(zip(measures, figure.subplots(1, len(measures), squeeze=False)[0], strict=True))
    for measure, axes in panels.items():
        title, label, limits, read = MEASURES[measure]
        for system, layers in systems.items():
            values = [read(figures) for figures in layers.values()]
            [line] = axes.plot(
                [int(layer) for layer in layers], values, color=look[system].colour,
                marker=look[system].marker, markersize=4, label=system,
            )  # fmt: skip
            titles = [
                f"{system}, layer {layer}: {value:.3g}"
                for layer, value in zip(layers, values, strict=True)
            ]
            note(line, system=system, titles=titles)
        if measure == "retrieval":
            axes.axhline(chance, color="#888888", linestyle="--", linewidth=1, label="chance")
        axes.set(title=title, xlabel="layer (0: embeddings)", ylabel=label, ylim=limits)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
    panels.get("retrieval", panels[measures[0]]).legend(fontsize=8)
    return figure


@styled
def agreement(
    systems: Mapping[str, Mapping[str, Any]], benchmark: str, look: Looks | None = None
) -> Figure:
    """Agreement with the English solution, a group of bars a language, a bar a system.

    `systems`: system -> as `reasoning.compare` returns. A line on each bar is agreement by chance.
    """
    bars = {
        system: {
            language: Bar(found["all"], across=found["by_chance"] or 0)
            for language, found in languages.items()
            if found.get("all") is not None
        }
        for system, languages in systems.items()
    }
    return grouped_bars(
        bars,
        title=f"Numbers of the English solution, {benchmark}",
        label="agreement (%)",
        look=look,
    )


@styled
def grouped_bars(
    systems: Mapping[str, Mapping[str, Bar]],
    *,
    title: str = "",
    label: str,
    apart: Collection[str] = (),
    top: float = 100,
    look: Looks | None = None,
) -> Figure:
    """A group of bars a language, or of whatever the inner keys name; a bar a system.

    Args:
      apart: groups that stand behind a gap, such as means.
      top: the upper end of the axis.
    """
    look = look or looks(systems)
    groups = list(dict.fromkeys(group for bars in systems.values() for group in bars))
    groups = [g for g in groups if g not in apart] + [g for g in groups if g in apart]
    places = {group: place + 0.4 * (group in apart) for place, group in enumerate(groups)}
    wide = max(6.0, 2.5 + len(groups) * (0.3 + 0.16 * len(systems)))
    figure = Figure(figsize=(min(wide, 12.0), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(systems))
    for number, (system, bars) in enumerate(systems.items()):
        shift = (number - (len(systems) - 1) / 2) * width
        _bars(axes, system, bars, {g: places[g] + shift for g in bars}, width, look[system].colour)
    axes.set_xticks(list(places.values()), groups)
    axes.margins(x=0.02)
    axes.set(title=title, ylabel=label, ylim=(0, top))
    axes.grid(axis="y")
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # "by chance" stands on every system's bars
    figure.legend(list(named.values()), list(named), loc="outside right upper")
    return figure


def _bars(
    axes: Axes,
    system: str,
    bars: Mapping[str, Bar],
    places: Mapping[str, float],
    width: float,
    colour: str,
) -> None:
    heights = [bar.value for bar in bars.values()]
    drawn = axes.bar(list(places.values()), heights, width * 0.92, label=system, color=colour)
    for patch, (group, bar) in zip(drawn, bars.items(), strict=True):
        between = "" if bar.interval is None else " ({:.1f} to {:.1f})".format(*bar.interval)
        by_chance = "" if bar.across is None else f", by chance {bar.across:.1f}"
        title = f"{system}, {group}: {bar.value:.1f} %{between}{by_chance}"
        note(patch, system=system, titles=[title])
    if whiskers := {group: bar.interval for group, bar in bars.items() if bar.interval}:
        x = [places[group] for group in whiskers]
        low, high = zip(*whiskers.values(), strict=True)
        for colour, thick in ((PAPER, 2.6), (INK, 1.0)):  # seen on the bar and above it
            note(axes.vlines(x, low, high, color=colour, linewidth=thick), system=system)
    if lines := {group: bar.across for group, bar in bars.items() if bar.across is not None}:
        left, right = ([places[g] + side * 0.46 * width for g in lines] for side in (-1, 1))
        across = axes.hlines(list(lines.values()), left, right, color=INK, linewidth=1.2)
        across.set_label("by chance")
        note(across, system=system)
    beside = 0.24 * width  # the whisker
    if dots := [(places[group] + beside, dot) for group, bar in bars.items() for dot in bar.dots]:
        [points] = axes.plot(
            *zip(*dots, strict=True), linestyle="none", marker="o", markersize=3.2, color=INK,
            markerfacecolor=PAPER, markeredgewidth=0.8,
        )  # fmt: skip
        note(points, system=system, titles=[f"{system}: {dot:.1f} %" for _, dot in dots])


@styled
def data_scale(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Accuracy against pairs, a line a benchmark; systems without pairs are a dashed line.

    `curves`: as `data_scale.curves` returns.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (benchmark, points) in enumerate(curves.items()):
        colour = PALETTE[(number + 2) % len(PALETTE)]
        some = [point for point in points if point["pairs"]]
        for key, style in (("non_english", "-"), ("average", ":")):
            [line] = axes.plot(
                [point["pairs"] for point in some], [point[key] for point in some], style,
                color=colour, marker="o", markersize=4, label=f"{benchmark}, {_WORDS[key]}",
            )  # fmt: skip
            titles = [f"{p['system']}, {p['pairs']:,} pairs: {p[key]:.1f} %" for p in some]
            note(line, titles=titles)
        for style, point in zip(("--", "-."), (p for p in points if not p["pairs"]), strict=False):
            axes.axhline(
                point["non_english"], color=colour, linestyle=style, linewidth=1,
                label=f"{benchmark}, {_WORDS['non_english']}, no pairs ({point['system']})",
            )  # fmt: skip
    ticks = sorted({point["pairs"] for points in curves.values() for point in points} - {0})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{pairs:,}" for pairs in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="question pairs in stage I", ylabel="accuracy (%)", ylim=(0, 100))
    axes.legend(fontsize=8)
    axes.grid(axis="y")
    return figure


_WORDS = {"non_english": "other languages than English", "average": "all languages"}
