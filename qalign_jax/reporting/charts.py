"""Figures as SVG inside a page: colours from the page's style, tooltips, marks that can be hidden.

Text stays text, in the page's font. Colours of the palette become `var(--c0)` and so on, black
`currentColor`, so that light, dark and print share one drawing.
"""

import io
import itertools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import markupsafe
import matplotlib
from matplotlib.figure import Figure

from qalign_jax.analysis import plots
from qalign_jax.analysis.plots import Bar
from qalign_jax.reporting import tables

_COLOURS = {
    plots.INK: "currentColor", plots.PAPER: "var(--paper)",
    "#dddddd": "var(--line)", "#888888": "var(--muted)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(plots.PALETTE)},
}  # fmt: skip
_GLYPHS: dict[str, str] = dict(zip(plots.MARKERS, "●▲■◆▼", strict=True))
# Characters that XML has not, which a name may hold.
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MOST_POINTS = 900  # of a scatter; more than the eye tells apart
_MOST_STEPS = 200  # of a training curve


class Key(NamedTuple):
    """An entry of a legend."""

    name: str
    glyph: str
    colour: str
    system: str = ""


class Chart(NamedTuple):
    """`svg` is ready for a page; `system` is what all of it shows, or ""."""

    svg: markupsafe.Markup
    title: str
    caption: str = ""
    keys: tuple[Key, ...] = ()
    system: str = ""


class Charts:
    """Draws a page's charts: a system looks the same in all of them, ids are unique."""

    def __init__(self, systems: Sequence[str]):
        self.look = plots.looks(systems)
        self._numbers = itertools.count()

    def keys(self, systems: Sequence[str], lines: bool = False) -> tuple[Key, ...]:
        """The legend of systems, in bars or in lines with markers."""
        return tuple(
            Key(name, _GLYPHS[marker] if lines else "■", _COLOURS[colour], name)
            for name in systems
            for colour, marker in [self.look[name]]
        )

    def accuracy(self, table: tables.Table) -> Chart:
        """A table's accuracies as bars with their intervals."""
        bars = {
            system: {
                column: Bar(value, interval)
                for column, value, interval in zip(table.columns, values, intervals, strict=True)
                if value is not None
            }
            for (system, values), intervals in zip(table.rows, table.intervals, strict=True)
        }
        return self.bars(bars, "Accuracy", "Per cent, with 95 % intervals.", table.benchmark)

    def bars(
        self, bars: Mapping[str, Mapping[str, Bar]], title: str, caption: str, of: str
    ) -> Chart:
        """Bars by system and group, the means apart; the axis ends above the highest mark."""
        marks = [
            mark
            for groups in bars.values()
            for bar in groups.values()
            for mark in (bar.value, *(bar.interval or ()), *bar.dots)
        ]
        top = min(100, 10 * (1 + max(marks, default=99) // 10))
        means = tables.MEANS.values()
        figure = plots.grouped_bars(bars, label="%", apart=means, top=top, look=self.look)
        return self._chart(figure, title, caption, self.keys(list(bars)), of)

    def training(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> Chart:
        """Loss over a stage's steps; under it learning rate and tokens a second."""
        figure = _training(rows)
        return self._chart(figure, stage, of="training")

    def space(self, projected: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
        """A chart a system."""
        found = []
        for system, content in projected.items():
            total = sum(map(len, content["points"].values()))
            step = 1 + (total - 1) // _MOST_POINTS
            points = {language: each[::step] for language, each in content["points"].items()}
            figure = plots.representation_space({system: {**content, "points": points}})
            figure.set_size_inches(3.3, 3.3)
            figure.axes[0].set_title("")
            shown = f", one question in {step}" if step > 1 else ""
            chart = self._chart(figure, system, f"Layer {content['layer']}{shown}.", of="space")
            found.append(chart._replace(system=system if system in self.look else ""))
        return found

    def languages(self, languages: Sequence[str]) -> tuple[Key, ...]:
        """The legend of the languages in `space`."""
        return tuple(
            Key(language, _GLYPHS[marker], _COLOURS[colour])
            for language, (colour, marker) in plots.language_looks(languages).items()
        )

    def by_layer(self, systems: Mapping[str, Mapping[str, Any]], chance: float) -> list[Chart]:
        """A chart a measure."""
        found = []
        for measure, (title, *_) in plots.MEASURES.items():
            figure = plots.by_layer(systems, chance, [measure], self.look)
            figure.set_size_inches(4.2, 3.4)
            figure.axes[0].set_title("")
            by_chance = "Dashed: by chance." if measure == "retrieval" else ""
            keys = self.keys(list(systems), lines=True)
            found.append(self._chart(figure, title, by_chance, keys))
        return found

    def agreement(self, systems: Mapping[str, Mapping[str, Any]], benchmark: str) -> Chart:
        """Agreement of solutions with the English ones, in bars."""
        figure = plots.agreement(systems, benchmark, self.look)
        figure.axes[0].set_title("")
        title = "Numbers of the English solution"
        caption = (
            "The share that a solution has too, in per cent. The line across a bar is that share "
            "with the English solution of another question."
        )
        return self._chart(figure, title, caption, self.keys(list(systems)), benchmark)

    def data_scale(self, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart:
        """Accuracy against question pairs; its lines are benchmarks, in a legend of its own."""
        figure = plots.data_scale(curves)
        figure.set_size_inches(7.5, 4)
        title = "Accuracy against the question pairs of stage I"
        return self._chart(figure, title, keep_legend=True)

    def _chart(
        self,
        figure: Figure,
        title: str,
        caption: str = "",
        keys: tuple[Key, ...] = (),
        of: str = "",
        keep_legend: bool = False,
    ) -> Chart:
        if not keep_legend:  # the page has keys of its own, which can be hidden
            for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)):
                if legend:
                    legend.remove()
        label = ". ".join(part for part in (f"{title}, {of}" if of else title, caption) if part)
        drawn = svg(figure, label, f"f{next(self._numbers)}")
        return Chart(drawn, title, caption, keys)


_MEASURES = {
    "loss": "loss a token", "learning_rate": "learning rate", "tokens_per_second": "tokens/s"
}  # fmt: skip


@plots.styled
def _training(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, and under it what else the rows have; means with the range of the steps they are of."""
    figure = Figure(figsize=(4.2, 3.9), layout="constrained")
    measures = [key for key in _MEASURES if key == "loss" or any(row.get(key) for row in rows)]
    heights = [4, 1, 1][: len(measures)]
    panels = figure.subplots(
        len(measures), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for axes, key in zip(panels, measures, strict=True):
        known = [row for row in rows if row.get(key) is not None]
        low, mean, high = thin([row["step"] for row in known], [row[key] for row in known])
        steps, means = zip(*mean, strict=True)
        colour = plots.PALETTE[2 if key == "loss" else 0]
        if key == "loss":
            ends = [[value for _, value in each] for each in (low, high)]
            axes.fill_between(steps, *ends, color=colour, alpha=0.22, linewidth=0)
            axes.grid(axis="y")
        else:
            axes.yaxis.get_major_locator().set_params(nbins=2)
        [line] = axes.plot(steps, means, color=colour, linewidth=1.3)
        last = known[-1]
        plots.note(line, titles=[f"{_MEASURES[key]}, step {last['step']:,}: {last[key]:.4g}"])
        axes.set_title(_MEASURES[key], loc="left", fontsize=9)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(labelsize=9)
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel("step")
    return figure


def thin(
    steps: Sequence[int], values: Sequence[float]
) -> tuple[list[tuple[float, float]], list[tuple[float, float]], list[tuple[float, float]]]:
    """Least, mean and greatest value, each with its mean step, of at most 200 runs of steps.

    The last run may be shorter than the others.
    """
    size = 1 + (len(steps) - 1) // _MOST_STEPS
    low, mean, high = [], [], []
    for start in range(0, len(steps), size):
        run = values[start : start + size]
        at = sum(steps[start : start + size]) / len(run)
        low.append((at, min(run)))
        mean.append((at, sum(run) / len(run)))
        high.append((at, max(run)))
    return low, mean, high


def svg(figure: Figure, label: str, prefix: str) -> markupsafe.Markup:
    """The figure as an `<svg>` for a page.

    Args:
      label: what it shows, for who does not see it.
      prefix: begins its ids, which are unique in a page where this is.
    """
    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none"}):
        # measured in another font than the browser's, which has more scripts
        warnings.filterwarnings("ignore", "Glyph .* missing")
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # names too long
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(_NO_XML.sub("", file.getvalue().decode()))
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style") or child.get("style") == "fill: none":
                parent.remove(child)
    used = re.findall(r"#([\w-]+)", " ".join(_references(root)))
    names = {name: f"{prefix}-{number}" for number, name in enumerate(dict.fromkeys(used))}
    for element in list(root.iter()):
        _rewrite(element, names)
    for group in list(root.iter("g")):
        _share_style(group)
    width, height = (
        float(root.attrib.pop(side).removesuffix("pt")) for side in ("width", "height")
    )
    root.attrib.pop("version", None)
    root.set("viewBox", f"0 0 {_short(width)} {_short(height)}")
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", f"--width:{width / 13:.2f}rem")  # a text of 10 points has 12 pixels
    return markupsafe.Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(root: ElementTree.Element) -> list[str]:
    """Attributes that name another element."""
    return [
        value
        for element in root.iter()
        for name, value in element.attrib.items()
        if _local(name) == "href" or "url(#" in value
    ]


def _rewrite(element: ElementTree.Element, names: Mapping[str, str]) -> None:
    """Takes off namespaces and digits, renames ids, colours by the page, adds tooltips."""
    element.tag = _local(element.tag)
    element.text = element.text if element.tag == "text" else None
    element.tail = None
    attributes = {_local(name): value for name, value in element.attrib.items()}
    element.attrib.clear()
    said = attributes.pop("id", "")
    for name, value in attributes.items():
        if name == "style":
            value = _style(value)
        elif name in ("d", "x", "y", "width", "height", "transform", "points"):
            value = re.sub(r"-?\d+\.\d+", lambda number: _short(float(number[0])), value)
            value = " ".join(value.split())
        elif name == "href" or "url(#" in value:
            value = re.sub(r"#([\w-]+)", lambda found: f"#{names[found[1]]}", value)
        if value and not (name == "transform" and value.startswith(("rotate(0 ", "rotate(-0 "))):
            element.set(name, value)
    if said in names:
        element.set("id", names[said])
    elif said.startswith("{"):
        _annotate(element, **json.loads(said))


def _annotate(element: ElementTree.Element, system: str, titles: list[str]) -> None:
    if system:
        element.set("data-system", system)
    points = [child for child in element.iter() if _local(child.tag) == "use"]
    marked = points if len(points) == len(titles) > 1 else [element]
    for each, title in zip(marked, titles, strict=False):
        node = ElementTree.Element("title")
        node.text = title
        each.insert(0, node)


def _style(text: str) -> str:
    """A style in the page's colours and font."""
    kept = []
    for name, value in (part.split(": ", 1) for part in text.split("; ") if ": " in part):
        value = value.strip().rstrip(";")
        if name == "font":  # [weight] size family: the family is the page's
            name, value = "font-size", re.findall(r"[\d.]+px", value)[0]
        if name in ("font-family", "stroke-linejoin", "stroke-linecap"):
            continue
        if name == "stroke-width":
            value = _short(float(value))
        kept.append(f"{name}:{_COLOURS.get(value, value)}")
    return ";".join(kept)


def _share_style(group: ElementTree.Element) -> None:
    """Hundreds of points have one style, which their group can have."""
    points = [child for child in group if child.tag == "use"]
    styles = {point.get("style") for point in points}
    if len(points) > 1 and len(styles) == 1 and (style := styles.pop()):
        group.set("style", style)
        for point in points:
            del point.attrib["style"]


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _short(number: float) -> str:
    return f"{round(number, 2):g}" if round(number, 2) else "0"
