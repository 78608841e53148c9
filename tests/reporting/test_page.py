"""The table of results and the report page, from the files of a run."""

import json
import re
import subprocess
import sys
from dataclasses import asdict

import pytest

from qalign_jax.checkpoints.part import Part
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.trainable import Trainable
from qalign_jax.reporting import page, tables
from tests.files import write_jsonl
from tests.hostile.readers import CONFIG
from tests.reporting.parsed import Parsed

SYSTEMS = {
    "ralign": {
        "mgsm": {
            "de": 35.44,
            "te": 1.0,
            "en": 65.5,
            "average": 38.4,
            "non_english": 35.4,
            "sound": {"de": 36.0, "te": 1.0, "en": 65.0, "average": 39.0, "non_english": 36.0},
        }
    },
    "<script>alert(1)</script>": {
        "mgsm": {"de": 47.6, "average": 49.6, "sound": {"de": 47.0, "average": 48.0}}
    },
}


@pytest.fixture
def workdir(tmp_path):
    config = {
        "stages": ["response_alignment", "evaluation"],
        "notes": ["The prompt is shorter than the paper's <b>."],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage = tmp_path / "response_alignment"
    stage.mkdir()
    rows = [{"step": s, "loss": 3.0 / s, "tokens_per_second": 100.0 * s} for s in range(1, 6)]
    lines = [json.dumps(row) for row in [rows[0], rows[1], *rows]]
    (stage / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "lo')
    packing = {"examples": 7473, "dropped": 1, "truncated": 2, "rows": 10, "positions": 1000}
    packing |= {"trained_tokens": 900, "efficiency": 0.984, "padded_positions": 2500}
    (stage / "packing.json").write_text(json.dumps(packing))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps({"systems": SYSTEMS}))
    return tmp_path


def test_the_text_table_puts_english_and_the_means_last():
    assert tables.text(SYSTEMS).splitlines() == [
        "mgsm                         de   te    en  non-English  average",
        "-" * 64,
        "ralign                     35.4  1.0  65.5         35.4     38.4",
        "<script>alert(1)</script>  47.6    -     -            -     49.6",
    ]


def test_the_sound_readers_table_stands_beside():
    assert "36.0" in tables.text(SYSTEMS, "sound") and "35.4" not in tables.text(SYSTEMS, "sound")


def test_the_page_shows_results_training_notes_and_config(workdir):
    text = page.write(workdir).read_text()
    parsed = Parsed(text)
    assert "Telugu (te) is not among them" in text
    for shown in ("35.4", "39.0", "47.6", "7,473", "98.4 %", "2.5×", "3.000", "0.600", "300"):
        assert f">{shown}<" in text, shown
    assert "The prompt is shorter than the paper&#39;s &lt;b&gt;." in text
    assert "&#34;stages&#34;" in text
    hostile = "<script>alert(1)</script>"
    assert parsed.table("Published reader") == [
        ["system", "de", "te", "en", "non-English", "average"],
        ["ralign", "35.4", "1.0", "65.5", "35.4", "38.4"],
        [hostile, "47.6", "–", "–", "–", "49.6"],
    ]
    assert parsed.table("Sound reader")[1:] == [
        ["ralign", "36.0", "1.0", "65.0", "36.0", "39.0"],
        [hostile, "47.0", "–", "–", "–", "48.0"],
    ]
    [stage] = parsed.table("Stages, and how")[1:]
    assert stage == [
        "response_alignment", "5", "3.000", "0.600", "300", "7,473", "1", "2", "900", "98.4 %",
        "2.5×",
    ]  # fmt: skip


def test_the_page_says_what_a_stage_trained(workdir):
    whole = asdict(CONFIG) | {"dtype": "float32"}
    adapter = Adapter(rank=2, alpha=4, dropout=0.25, matrices=("query", "up"), scaling="sqrt_rank")
    parts = {
        "alone": Part(Trainable(adapter, dtype="bfloat16"), "../response_alignment", "0"),
        "layers": Part(Trainable.of("layers:1/mlp", int8=True), "/models/a<b>+/other", "0"),
    }
    for name in ("response_alignment", *parts):
        folder = workdir / name
        folder.mkdir(exist_ok=True)
        (folder / "packing.json").write_text('{"examples": 1}')
        own = {"part": parts[name].to_json()} if name in parts else {}
        (folder / "model.json").write_text(json.dumps({"model": whole, "template": "short"} | own))
        if name not in parts:  # all stages so far trained all weights
            assert "What was trained" not in page.write(workdir).read_text()
    table = Parsed(page.write(workdir).read_text()).table("What was trained")
    words = "LoRA adapter of rank 2, alpha 4, rank-stabilised, dropout 0.25, on query, up"
    # two layers of (16 + 2 * 8) * 2 and (16 + 24) * 2; one of 3 * 16 * 24
    assert table == [
        ["stage", "trained", "parameters", "of the model's", "frozen", "matrices in"],
        ["response_alignment", "all weights", "13,840", "100 %", "–", "–"],
        ["alone", words, "288", "2.08 %", "response_alignment", "bfloat16"],
        ["layers", "gate, up, down of layer 1", "1,152", "8.32 %", "/models/a<b>+/other", "int8"],
    ]
    (workdir / "alone" / "model.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match=r"alone/model\.json: not a model's.*train it again"):
        page.write(workdir)


def test_the_page_loads_nothing_and_runs_no_script_but_its_own(workdir):
    text = page.write(workdir).read_text()
    parsed = Parsed(text)
    assert all(link.startswith("#") for link in parsed.links)  # sections, and marks in charts
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)
    assert parsed.tags.count("script") == 1 and "alert(1)" not in parsed.script
    assert "&lt;script&gt;" in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text and "http" not in text


def test_ids_are_unique_and_charts_say_what_they_show(workdir):
    parsed = Parsed(page.write(workdir).read_text())
    assert len(parsed.ids) == len(set(parsed.ids)) > 5
    assert parsed.labels == [
        "Accuracy, mgsm. Per cent, with 95 % intervals.",
        "response_alignment, training",
    ]
    assert "ralign, de: 35.4 %" in parsed.titles and "ralign, en: 65.5 %" in parsed.titles


def test_the_rows_and_bars_of_a_system_carry_its_name(workdir):
    parsed = Parsed(page.write(workdir).read_text())
    assert set(parsed.systems) == set(SYSTEMS)
    # two rows, six bars, an entry of the legend
    assert parsed.systems.count("ralign") == 2 + 5 + 1


def test_names_notes_and_languages_are_shown_as_text(workdir):
    hostile = "<img src=x onerror=alert(1)>$x$"
    figures = {hostile: 10.0, "en": 20.0, "average": 15.0, "non_english": 10.0}
    versus = {"difference": 1.0, "interval": [-1.0, 3.0], "p": 0.5}
    figures |= {"intervals": {key: [1.0, 30.0] for key in figures}}
    other = figures | {"versus": {"baseline": hostile, "average": versus}}
    figures |= {"consistency": {"language": {hostile: 1.0, "non_english": 1.0}}}
    systems = {hostile: {hostile: figures}, "'\"&": {hostile: other}}
    (workdir / "evaluation" / "results.json").write_text(json.dumps({"systems": systems}))
    config = {"name": hostile, "notes": [hostile], "stages": ["evaluation"], "base": hostile}
    config["evaluation"] = {"kind": "evaluate", "systems": {hostile: {"model": hostile}}}
    (workdir / "config.json").write_text(json.dumps(config))
    parsed = Parsed(page.write(workdir).read_text())
    assert "img" not in parsed.tags
    assert parsed.table("Published reader")[1][:2] == [hostile, "10.0"]
    assert f"{hostile}, {hostile}: 10.0 % (1.0 to 30.0)" in parsed.titles


def test_an_unfinished_run_has_a_page_too(workdir):
    (workdir / "evaluation" / "results.json").unlink()
    assert "Accuracy" not in page.write(workdir).read_text()
    (workdir / "evaluation" / "results.json").write_text('{"representations": {}}')
    assert "Representations" not in page.write(workdir).read_text()
    (workdir / "response_alignment" / "metrics.jsonl").unlink()
    assert "7,473" in page.write(workdir).read_text()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        page.write(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="give a run's workdir"):
        page.write(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        page.write(tmp_path)


@pytest.mark.parametrize("systems", [[1], {"base": 5}, {"base": {"mgsm": [3]}}])
def test_results_of_another_shape_are_refused(systems, tmp_path):
    write_jsonl(tmp_path / "evaluation" / "results.json", [{"systems": systems}])
    with pytest.raises(
        ValueError, match=r"results\.json: systems.* is .*; expected an object; delete"
    ):
        page.write(tmp_path)


def test_damaged_files_of_a_stage_are_named(workdir):
    metrics = workdir / "response_alignment" / "metrics.jsonl"
    metrics.write_text("{\n" + metrics.read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: not JSON .*; delete the line"):
        page.write(workdir)
    metrics.unlink()
    (workdir / "evaluation" / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results\.json: expected an object, found .*; delete"):
        page.write(workdir)


def test_the_command_writes_the_page_again(workdir):
    done = subprocess.run(
        [sys.executable, "-m", "qalign_jax.report", f"--workdir={workdir}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {"workdir": str(workdir), "report": str(workdir / "report.html")}
    assert (workdir / "report.html").is_file()


COMPARED = {
    "ralign": {"mgsm": {"de": 35.4, "average": 35.4, "intervals": {"average": [29.7, 41.5]}}},
    "qalign": {
        "mgsm": {
            "de": 47.6,
            "average": 47.6,
            "intervals": {"de": [41.5, 53.8], "average": [41.5, 53.8]},
            "consistency": {"language": {"non_english": 9.7}, "prediction": {"non_english": 51.5}},
            "executions": {"error": 12.0, "ok": 88.0},
            "versus": {
                "baseline": "ralign",
                "de": {"difference": 12.2, "p": 0.04, "p_holm": 0.08},
                "average": {"difference": 12.2, "interval": [6.1, 18.3], "p": 0.0004},
            },
        }
    },
}


def test_means_stand_with_intervals_and_their_difference_to_the_baseline():
    text = tables.text(COMPARED)
    assert "qalign, average      47.6  41.5 to 53.8        +12.2  +6.1 to +18.3  0.0004" in text
    [table] = tables.tables(COMPARED)
    assert table.marks == (("", ""), ("", "*")) and table.intervals[1][0] == [41.5, 53.8]


def test_the_page_shows_intervals_comparisons_consistency_and_pictures(workdir):
    (workdir / "evaluation" / "results.json").write_text(json.dumps({"systems": COMPARED}))
    (workdir / "representations").mkdir()
    (workdir / "representations" / "space.png").write_bytes(b"picture")
    config = json.loads((workdir / "config.json").read_text()) | {"fast": True}
    (workdir / "config.json").write_text(json.dumps(config))
    text = page.write(workdir).read_text()
    assert "47.6*<small>42–54</small>" in text and "+6.1 to +18.3" in text
    parsed = Parsed(text)
    assert parsed.table("Answers in the question's")[1:] == [
        ["qalign", "9.7", "51.5", "error 12, ok 88"]
    ]
    assert parsed.table("Means against ralign")[1:] == [
        ["qalign", "average", "47.6", "41.5 to 53.8", "+12.2", "+6.1 to +18.3", "0.0004"]
    ]
    assert "data:image/png;base64,cGljdHVyZQ==" in parsed.links
    assert "its figures mean nothing" in text


def test_the_head_gives_the_difference_to_the_baseline(workdir):
    (workdir / "evaluation" / "results.json").write_text(json.dumps({"systems": COMPARED}))
    parsed = Parsed(page.write(workdir).read_text())
    [headline] = parsed.texts("headline")
    assert " ".join(headline.split()) == (
        "mgsm, all languages 47.6% qalign 35.4% ralign +12.2 points, 95 % interval +6.1 to +18.3, "
        "p = 0.0004"
    )


def test_published_figures_stand_in_a_table_of_their_own(workdir):
    parsed = Parsed(page.write(workdir).read_text())
    rows = parsed.table("mgsm in the literature, per cent")
    assert ["LLaMA2-7B", "both stages", "qalign", "47.6", "68.0", "49.6", "quoted",
            "arXiv 2405.01345"] in rows  # fmt: skip
    results = json.dumps({"systems": {"ralign": {"everyday": {"de": 1.0, "average": 1.0}}}})
    (workdir / "evaluation" / "results.json").write_text(results)
    assert "literature" not in page.write(workdir).read_text()


def test_analyses_are_drawn_from_their_results(workdir):
    def layer(near):
        average = {"nearer": near, "to_english": 40.0, "from_english": 60.0}
        return {"centred": {"average": average}, "between_languages": 0.25}

    points = {"en": [[0.0, 1.0], [2.0, 0.5]], "th": [[1.0, 1.0], [0.5, 0.25]]}
    pca = {"layer": 2, "explained": [0.5, 0.25], "points": points}
    content = {
        "representations": {
            "questions": 2,
            "retrieval_by_chance": 50.0,
            "systems": {"base": {"layers": {"0": layer(0.1), "2": layer(0.2)}, "pca": pca}},
        },
        "reasoning": {"mgsm": {"ralign": {"th": {"all": 30.0, "by_chance": 4.0}}}},
        "data_scale": {
            "mgsm": [
                {"system": "ralign", "pairs": 0, "average": 10.0, "non_english": 5.0},
                {"system": "q", "pairs": 100, "average": 30.0, "non_english": 20.0},
            ]
        },
    }
    (workdir / "analysis").mkdir()
    (workdir / "analysis" / "results.json").write_text(json.dumps(content))
    (workdir / "analysis" / "space.png").write_bytes(b"picture")
    text = page.write(workdir).read_text()
    titles = Parsed(text).titles
    assert {"base, layer 0: 0.1", "base, layer 2: 50", "base, layer 2: 0.25"} <= set(titles)
    assert {"th", "ralign, th: 30.0 %, by chance 4.0", "q, 100 pairs: 20.0 %"} <= set(titles)
    assert "no pairs (ralign)" in text and "data:image" not in text
