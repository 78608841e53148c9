"""Figures, and the SVG that a page holds of them."""

import re
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex

from qalign_jax.analysis import plots
from qalign_jax.analysis.plots import Bar
from qalign_jax.reporting import charts, tables
from qalign_jax.reporting.charts import Charts

RESULTS = {
    "ralign": {
        "mgsm": {"de": 20.0, "en": 60.0, "average": 40.0, "intervals": {"de": [10.0, 35.0]}}
    },
    "qalign": {"mgsm": {"de": 50.0, "en": 70.0, "average": 60.0}},
}


def test_bars_and_whiskers_have_the_heights_of_the_figures():
    bars = {"a": {"de": Bar(20.0, (10.0, 35.0), 5.0, (18.0, 22.0))}, "b": {"de": Bar(50.0)}}
    [axes] = plots.grouped_bars(bars, label="%").axes
    assert [patch.get_height() for patch in axes.patches] == [20.0, 50.0]
    halo, whisker, across = (each.get_segments()[0] for each in axes.collections)
    place = axes.patches[0].get_x() + axes.patches[0].get_width() / 2
    assert halo.tolist() == whisker.tolist()
    assert whisker[:, 1].tolist() == [10.0, 35.0] and whisker[0, 0] == pytest.approx(place)
    assert across[:, 1].tolist() == [5.0, 5.0]
    assert axes.lines[0].get_ydata().tolist() == [18.0, 22.0]


def test_means_stand_behind_a_gap_whatever_system_has_them_first():
    bars = {"a": {"average": Bar(1.0), "de": Bar(1.0)}, "b": {"de": Bar(1.0), "en": Bar(1.0)}}
    [axes] = plots.grouped_bars(bars, label="%", apart=("average",)).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["de", "en", "average"]
    assert axes.get_xticks().tolist() == [0, 1, 2.4]


def test_a_system_has_one_colour_in_all_pictures():
    systems = ["large", "qalign", "own", "ralign"]
    look = plots.looks(systems)
    assert look["qalign"].colour == plots.looks(["qalign"])["qalign"].colour == plots.PALETTE[2]
    assert len({each.colour for each in look.values()}) == 4
    assert len(set(plots.looks(map(str, range(55))).values())) == 55
    agreement = {name: {"de": {"all": 1.0, "by_chance": None}} for name in systems}
    bars = plots.agreement(agreement, "mgsm", look).axes[0].patches
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [look[name].colour for name in systems]
    layers = {"0": {"between_languages": 0.5}}
    figure = plots.by_layer(dict.fromkeys(systems, layers), 1.0, ["between"], look)
    lines = figure.axes[0].lines
    assert [line.get_color() for line in lines] == [look[name].colour for name in systems]


def drawn(chart):
    return ElementTree.fromstring(chart.svg)


def test_a_chart_takes_the_pages_colours_and_font():
    [table] = tables.tables(RESULTS)
    text = Charts(list(RESULTS)).accuracy(table).svg
    used = set(re.findall(r"(?:fill|stroke):([^;\"]+)", text))
    assert used == {"none", "currentColor", "var(--line)", "var(--paper)", "var(--c1)", "var(--c2)"}
    assert "font-family" not in text and "<style" not in text and "http" not in text
    assert ">non-English<" not in text and ">average<" in text


def test_a_bar_says_its_figures_and_whose_it_is():
    [table] = tables.tables(RESULTS)
    root = drawn(Charts(list(RESULTS)).accuracy(table))
    assert root.get("role") == "img"
    assert root.get("aria-label") == "Accuracy, mgsm. Per cent, with 95 % intervals."
    said = {group.findtext("title"): group.get("data-system") for group in root.iter("g")}
    said.pop(None)
    assert said == {
        "ralign, de: 20.0 % (10.0 to 35.0)": "ralign",
        "ralign, en: 60.0 %": "ralign",
        "ralign, average: 40.0 %": "ralign",
        "qalign, de: 50.0 %": "qalign",
        "qalign, en: 70.0 %": "qalign",
        "qalign, average: 60.0 %": "qalign",
    }


def test_a_bars_path_is_as_high_as_its_figure():
    [table] = tables.tables(RESULTS)
    root = drawn(Charts(list(RESULTS)).accuracy(table))
    heights = {}
    for group in root.iter("g"):
        if title := group.findtext("title"):
            y = [float(number) for number in re.findall(r"[ML] \S+ (\S+)", group[1].get("d"))]
            heights[title.split(" %")[0]] = max(y) - min(y)
    unit = heights["ralign, en: 60.0"] / 60
    for title, height in heights.items():
        assert height == pytest.approx(unit * float(title.split(": ")[1]), abs=0.02)


def test_charts_of_one_page_share_no_id():
    page = Charts(["base"])
    bars = {"base": {"de": Bar(20.0)}}
    texts = [page.bars(bars, "One", "", "x").svg, page.bars(bars, "Two", "", "x").svg]
    first, second = (set(re.findall(r' id="([^"]+)"', text)) for text in texts)
    assert first and second and not first & second
    for text, ids in zip(texts, (first, second), strict=True):
        assert set(re.findall(r"#([\w-]+)", text)) == ids


def test_names_in_other_scripts_and_with_signs_are_text():
    name, languages = "名<b>$x_1$", ["العربية", "$x$", "<i>"]
    bars = {name: dict.fromkeys(languages, Bar(1.0))}
    root = drawn(Charts([name]).bars(bars, "T", "", "x"))
    assert [text.text for text in root.iter("text")][:3] == languages
    titles = [title.text for title in root.iter("title")]
    assert titles == [f"{name}, {language}: 1.0 %" for language in languages]


def test_long_stages_are_thinned_to_means_with_their_range():
    steps = list(range(1, 1001))
    low, mean, high = charts.thin(steps, [float(step) for step in steps])
    assert len(low) == len(mean) == len(high) == 200
    assert (low[0], mean[0], high[0]) == ((3.0, 1.0), (3.0, 3.0), (3.0, 5.0))
    assert (low[-1], mean[-1], high[-1]) == ((998.0, 996.0), (998.0, 998.0), (998.0, 1000.0))
    assert charts.thin([4, 9], [1.0, 2.0])[1] == [(4.0, 1.0), (9.0, 2.0)]
    assert [at for at, _ in charts.thin(list(range(201)), [0.0] * 201)[1]][-2:] == [198.5, 200.0]


def test_a_stages_chart_has_the_measures_that_it_has():
    rows = [{"step": step, "loss": 3.0 / step, "learning_rate": 0.1} for step in (1, 2, 3)]
    root = drawn(Charts([]).training("stage", rows))
    texts = {text.text for text in root.iter("text")}
    assert {"loss a token", "learning rate", "step"} <= texts and "tokens/s" not in texts
    titles = [title.text for title in root.iter("title")]
    assert titles == ["loss a token, step 3: 1", "learning rate, step 3: 0.1"]


def test_many_points_are_thinned_by_question_in_all_languages_alike():
    points = {language: [[float(i), 0.0] for i in range(250)] for language in ("en", "de")}
    points |= {f"l{number}": points["en"] for number in range(9)}
    pca = {"layer": 4, "explained": [0.5, 0.25], "points": points}
    [chart] = Charts(["base"]).space({"base": pca})
    assert (chart.system, chart.title) == ("base", "base")
    assert chart.caption == "Layer 4, one question in 4."
    groups = [group for group in drawn(chart).iter("g") if group.findtext("title")]
    counts = {group.findtext("title"): len(list(group.iter("use"))) for group in groups}
    assert counts == dict.fromkeys(points, 63)
    assert len(chart.svg) < 80_000
