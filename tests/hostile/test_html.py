"""HTML in names, questions, answers and ids of a run is text on pages, in a card, in a notebook."""

import collections
import html
import json
import pathlib
import urllib.parse

import markdown_it
from selenium.webdriver.support.ui import WebDriverWait

from qalign_jax import files
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.reporting import compare, model_card, page
from qalign_jax.reporting.notebook import ShownTrace, fits_html, run_html, score_html
from tests.files import write_jsonl
from tests.hostile.readers import CONFIG, LAYER, trace
from tests.reporting.conftest import browser  # noqa: F401  # a fixture
from tests.reporting.parsed import Parsed

# It leaves an attribute, a script and a comment; as a folder's name it has no slash.
BAD = "\"'><img src=x onerror=hacked=1><script>hacked=1<!--${hacked=1}{{7*7}}"
CLOSING = "</script></textarea></title></svg>" + BAD


def scores():
    table = {BAD: 10.0, "en": 20.0, "average": 15.0, "non_english": 10.0}
    intervals = {key: [1.0, 30.0] for key in table}
    versus = {"difference": 1.0, "interval": [-1.0, 3.0], "p": 0.01}
    first = table | {
        "intervals": intervals,
        "sound": table,
        "consistency": {"language": table, "prediction": table},
        "executions": {BAD: 50.0},
    }
    second = first | {"versus": {"baseline": BAD, "non_english": versus, BAD: versus}}
    return {BAD: {BAD: first}, f"{BAD}2": {BAD: second}}


def write_run(folder, seed=0):
    """A run with markup in everything that comes from a recipe, from data or from a model."""
    system = {"model": BAD, "expert": CLOSING, "antiexpert": CLOSING, "alpha": 1.0}
    tuned = {"kind": "train", "init": CLOSING, "preset": CLOSING}
    config = {
        "name": CLOSING, "stages": [BAD, "evaluation", "analysis"], "notes": [CLOSING],
        "seed": seed, "base": CLOSING, BAD: tuned, CLOSING: CLOSING,
        "evaluation": {"kind": "evaluate", "baseline": CLOSING, "systems": {BAD: system}},
        "analysis": {"kind": CLOSING},
    }  # fmt: skip
    files.write_json(folder / "config.json", config)
    write_jsonl(folder / BAD / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    (folder / BAD / f"{BAD}.png").write_bytes(b"")
    files.write_json(folder / "evaluation" / "results.json", {"systems": scores()})
    row = {
        "id": CLOSING, "question": CLOSING, "answer": CLOSING, "output": CLOSING, "correct": False,
        "prediction": CLOSING, "sound_prediction": BAD, "sound_correct": True, "choices": [CLOSING],
        "executions": [{"status": CLOSING, "output": CLOSING}],
    }  # fmt: skip
    row["trace"] = trace(2) | {"text": [CLOSING, BAD], "base_text": [BAD, CLOSING]}
    row["trace"]["base_tokens"] = [4, 4]
    header = {"header": {"template": CLOSING}}
    answers = folder / "evaluation" / BAD / BAD
    write_jsonl(answers / f"{BAD}.jsonl", [header, row])
    likely = {key: row[key] for key in ("id", "choices")} | {"log_likelihoods": [-1.0]}
    write_jsonl(answers / "likelihood" / f"{BAD}.jsonl", [header, likely])
    points = {BAD: [[0.0, 1.0]], "en": [[1.0, 0.0]]}
    found = {
        "layers": {"0": LAYER, "1": LAYER},
        "pca": {"layer": 1, "explained": [0.5, 0.5], "points": points},
    }
    point = {"pairs": 10, "average": 1.0, "non_english": 1.0}
    files.write_json(
        folder / "analysis" / "results.json",
        {
            "representations": {
                "questions": 1, "retrieval_by_chance": 1.0, "systems": {BAD: found}
            },
            "reasoning": {BAD: {BAD: {BAD: {"all": 1.0, "by_chance": 1.0}}}},
            "data_scale": {BAD: [point | {"system": BAD}, point | {"system": CLOSING, "pairs": 0}]},
        },
    )  # fmt: skip
    return folder


# What a page of ours is made of; an image is a picture of a stage, its data in the page.
OURS = {"script", "img"}


def test_a_runs_page_shows_markup_as_text(tmp_path):
    parsed = Parsed(page.write(write_run(tmp_path)).read_text())
    clean = Parsed(page.write(write_clean(tmp_path / "clean")).read_text())
    assert {tag: parsed.tags.count(tag) for tag in OURS} == {
        tag: clean.tags.count(tag) for tag in OURS
    }
    assert not any("hacked" in link for link in parsed.links if not link.startswith("data:"))
    assert parsed.table("Published reader")[1][:2] == [BAD, "10.0"]
    assert BAD in parsed.systems


def write_clean(folder):
    """The same run with harmless texts in their places."""
    write_run(folder)
    replaced = {BAD: "x", CLOSING: "y"}
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        if path.suffix in (".json", ".jsonl"):
            text = path.read_text()
            for bad, good in sorted(replaced.items(), key=lambda pair: -len(pair[0])):
                text = text.replace(json.dumps(bad)[1:-1], good)
            path.write_text(text)
        path.rename(path.with_name(path.name.replace(BAD, "x")))
    return folder


def test_a_comparison_shows_markup_as_text(tmp_path):
    runs = [write_run(tmp_path / name, seed) for seed, name in enumerate(("a", BAD, "c"))]
    (runs[2] / "config.json").write_text(json.dumps({"name": CLOSING, "other": CLOSING}))
    path = compare.write(runs, tmp_path / "comparison.html")
    parsed = Parsed(path.read_text())
    assert parsed.tags.count("script") == 1 and "img" not in parsed.tags
    assert not any("hacked" in link for link in parsed.links)
    assert BAD in parsed.systems


def test_no_markup_of_a_run_acts_in_a_browser(browser, tmp_path):  # noqa: F811
    """The pages as a browser builds them: elements that scripts add are among them."""
    run = write_run(tmp_path / "run")
    pages = [page.write(run)]
    pages.append(compare.write([run, write_run(tmp_path / "two", 1)], tmp_path / "both.html"))
    for path in pages:
        browser.get(f"file://{urllib.parse.quote(str(path))}")
        for key in "jjkk":
            browser.execute_script(
                "document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))", key
            )
        browser.execute_script(
            "document.querySelectorAll('button, summary').forEach(each => each.click())"
        )
        if path == pages[0]:
            shown = WebDriverWait(browser, 10).until(
                lambda browser: browser.find_elements("css selector", ".x-question")
            )
            assert shown[0].text == CLOSING
        assert browser.execute_script("return window.hacked") is None
        images = browser.find_elements("css selector", "img")
        assert all(image.get_attribute("src").startswith("data:") for image in images)
        assert not browser.find_elements("css selector", "[onerror]")


def test_a_model_card_shows_markup_as_text(tmp_path):
    run = write_run(tmp_path)
    settings = {"init": CLOSING, "data": {"a": {"name": CLOSING, "part": BAD}}, "lr": CLOSING}
    write_record(run / BAD, Record(settings, {"adapter": f"a|b\n# {CLOSING}"}))
    config = json.loads((run / "config.json").read_text())
    config["evaluation"]["systems"] = {
        name: {"model": BAD, "expert": "", "antiexpert": ""} for name in scores()
    }
    (run / "config.json").write_text(json.dumps(config))
    fence = f"```\n{CLOSING}\n{{instruction}}\n````\n<img>"
    text = model_card.text(run / BAD, 3, CONFIG, f"{BAD}\n---", "float32", fence)
    _, _, body = text.removeprefix("---").partition("\n---\n")
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    tokens = [token for each in parser.parse(body) for token in (each, *(each.children or ()))]
    kinds = collections.Counter(token.type for token in tokens)
    assert not [kind for kind in kinds if kind.startswith("html")] and "image" not in kinds
    assert (kinds["heading_open"], kinds["fence"], kinds["link_open"]) == (4, 2, 1)
    assert (kinds["tr_open"], kinds["th_open"]) == (2 + 3, 7 + 5)
    shown = next(token.content for token in tokens if token.type == "fence")
    assert shown == fence.replace("{instruction}", "{question}") + "\n"
    shown = [token.content for token in tokens if token.type == "text"]
    assert any(BAD in each for each in shown)


def test_a_notebook_shows_markup_as_text():
    outcome = {"stages": {CLOSING: "open"}, "report": f"{BAD}/report.html", "systems": scores()}
    stage = {"fits": True, "peak_gib": 1.0, "modelled_step_s": None, "modelled_mfu": None}
    stage |= {"modelled_step_overlapped_s": None, "modelled_mfu_overlapped": None}
    fits = {"topology": CLOSING, "devices": 1, "hbm_gib": 1, "fits": True, "stages": {BAD: stage}}
    columns = trace(2) | {
        "text": [CLOSING, BAD],
        "base_text": [BAD, CLOSING],
        "base_tokens": [4, 4],
    }
    table = {BAD: 10.0, "average": 10.0}
    scored = {"benchmark": CLOSING, "accuracy": table, "sound": table, "intervals": {}}
    shown = [
        run_html(outcome),
        fits_html(fits | {"suggestions": {CLOSING: []}}),
        ShownTrace(**columns)._repr_html_(),
        score_html(scored),
    ]
    for each in shown:
        parsed = Parsed(each)
        assert not {"img", "script", "title", "svg"} & set(parsed.tags)
        assert html.escape(BAD[:4], quote=True).split(";")[-1] in each


def test_a_folder_whose_name_is_no_utf8_is_shown_by_its_bytes(tmp_path):
    run = write_run(tmp_path / "run")
    odd = pathlib.Path(str(run).encode().decode(), "odd\udcff")
    odd.mkdir()
    (odd / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert "odd\\udcff" in page.write(run).read_text()
