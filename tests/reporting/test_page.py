"""The table of results and the report page, from the files of a run."""

import html.parser
import json
import subprocess
import sys

import pytest

from qalign_jax.reporting import page, tables

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


class Parsed(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


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
    assert parsed.tags.count("table") == 3
    assert "Telugu (te) is not among them" in text
    for shown in ("35.4", "39.0", "47.6", "7,473", "98.4 %", "2.5×", "3.000", "0.600", "300"):
        assert f">{shown}<" in text, shown
    assert "The prompt is shorter than the paper&#39;s &lt;b&gt;." in text
    assert "&#34;stages&#34;" in text


def test_the_page_needs_no_network_and_runs_no_script(workdir):
    text = page.write(workdir).read_text()
    parsed = Parsed(text)
    assert parsed.links == [] and "script" not in parsed.tags
    assert "&lt;script&gt;" in text and "<script" not in text
    assert "url(" not in text and "@import" not in text


def test_an_unfinished_run_has_a_page_too(workdir):
    (workdir / "evaluation" / "results.json").unlink()
    assert "Accuracy" not in page.write(workdir).read_text()
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
    assert "error 12, ok 88" in text and ">9.7<" in text and ">51.5<" in text
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in text and "principal" in text
    assert "its figures mean nothing" in text
