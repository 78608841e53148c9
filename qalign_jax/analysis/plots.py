"""The analyses' pictures, one PNG a function; each takes what results.json holds."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qalign_jax import files

# Okabe and Ito's colours, told apart by colour-blind readers, with a darker yellow.
COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#B8A800", "#666666",
    "#7B3F00",
)  # fmt: skip
MARKERS = ("o", "^", "s", "D", "v")  # 45 languages differ in one or the other


def representation_space(
    path: str | os.PathLike, projected: Mapping[str, Mapping[str, Any]]
) -> None:
    """A panel a system, a colour a language.

    `projected`: system -> `layer`, and what `representations.project` returns of it.
    """
    figure = Figure(figsize=(1 + 4 * len(projected), 4.6), layout="constrained")
    panels = figure.subplots(1, len(projected), squeeze=False)[0]
    for axes, (system, found) in zip(panels, projected.items(), strict=True):
        for number, (language, points) in enumerate(found["points"].items()):
            axes.scatter(
                *zip(*points, strict=True), label=language, s=14, alpha=0.7, linewidths=0,
                color="black" if language == "en" else COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
            )  # fmt: skip
        first, second = found["explained"]
        axes.set(
            title=f"{system}, layer {found['layer']}",
            xlabel=f"component 1 ({first:.0%} of the variance)",
            ylabel=f"component 2 ({second:.0%})",
        )
        axes.tick_params(labelsize=7)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", markerscale=1.8, frameon=False)
    _save(figure, path)


def by_layer(path: str | os.PathLike, systems: Mapping[str, Mapping[str, Any]], chance: float):
    """Nearness, retrieval and distance of languages by layer, a line a system.

    Args:
      systems: system -> layer -> as `representations.compare` returns.
      chance: retrieval accuracy by chance, in percent.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    nearness, retrieval, between = figure.subplots(1, 3)
    for number, (system, layers) in enumerate(systems.items()):
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)], "marker": "o", "markersize": 3.5,
            "label": system,
        }  # fmt: skip
        numbers = [int(layer) for layer in layers]
        averages = [found["centred"]["average"] for found in layers.values()]
        both = [(each["to_english"] + each["from_english"]) / 2 for each in averages]
        nearness.plot(numbers, [each["nearer"] for each in averages], **style)
        retrieval.plot(numbers, both, **style)
        between.plot(numbers, [found["between_languages"] for found in layers.values()], **style)
    retrieval.axhline(chance, color="#888888", linestyle="--", linewidth=1, label="chance")
    nearness.set(
        title="How much nearer translations are", ylabel="cosine, less that of other questions"
    )
    retrieval.set(
        title="Retrieval of translations", ylabel="top-1 accuracy (%), both ways", ylim=(0, 102)
    )
    between.set(
        title="Variance between languages", ylabel="share of the layer's variance", ylim=(0, None)
    )
    for axes in (nearness, retrieval, between):
        axes.set_xlabel("layer (0: embeddings)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _grid(axes)
    retrieval.legend(frameon=False, fontsize=8)
    _save(figure, path)


def agreement(path: str | os.PathLike, systems: Mapping[str, Mapping[str, Any]], benchmark: str):
    """Agreement with the English solution, a group of bars a language, a bar a system.

    `systems`: system -> as `reasoning.compare` returns. A line on each bar is agreement by chance.
    """
    languages = list(dict.fromkeys(language for found in systems.values() for language in found))
    wide = max(6.0, 2.5 + len(languages) * (0.3 + 0.16 * len(systems)))
    figure = Figure(figsize=(wide, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(systems)
    for number, (system, found) in enumerate(systems.items()):
        places = [
            (place + (number - (len(systems) - 1) / 2) * width, found[language])
            for place, language in enumerate(languages)
            if found.get(language, {}).get("all") is not None
        ]
        where = [place for place, _ in places]
        axes.bar(
            where, [each["all"] for _, each in places], width * 0.92, label=system,
            color=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
        axes.hlines(
            [each["by_chance"] or 0 for _, each in places],
            [place - width * 0.46 for place in where], [place + width * 0.46 for place in where],
            color="black", linewidth=1.2, label="" if number else "by chance",
        )  # fmt: skip
    axes.set_xticks(range(len(languages)), languages)
    axes.margins(x=0.02)
    axes.set(
        title=f"Numbers of the English solution, {benchmark}", ylabel="agreement (%)", ylim=(0, 100)
    )
    _grid(axes)
    figure.legend(loc="outside right upper", frameon=False)
    _save(figure, path)


def data_scale(path: str | os.PathLike, curves: Mapping[str, Sequence[Mapping[str, Any]]]):
    """Accuracy against pairs, a line a benchmark; systems without pairs are a dashed line.

    `curves`: as `data_scale.curves` returns.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (benchmark, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        some = [point for point in points if point["pairs"]]
        for key, line in (("non_english", "-"), ("average", ":")):
            axes.plot(
                [point["pairs"] for point in some], [point[key] for point in some], line,
                color=colour, marker="o", markersize=4, label=f"{benchmark}, {_WORDS[key]}",
            )  # fmt: skip
        for line, point in zip(("--", "-."), (p for p in points if not p["pairs"]), strict=False):
            axes.axhline(
                point["non_english"], color=colour, linestyle=line, linewidth=1,
                label=f"{benchmark}, {_WORDS['non_english']}, no pairs ({point['system']})",
            )  # fmt: skip
    ticks = sorted({point["pairs"] for points in curves.values() for point in points} - {0})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{pairs:,}" for pairs in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="question pairs in stage I", ylabel="accuracy (%)", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8)
    _grid(axes)
    _save(figure, path)


_WORDS = {"non_english": "other languages than English", "average": "all languages"}


def _grid(axes: Axes) -> None:
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    files.write_bytes(path, image.getvalue())
