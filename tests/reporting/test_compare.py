"""Runs on one page: groups of seeds, means and intervals over them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from qalign_jax.reporting import compare
from qalign_jax.reporting.compare import Mean
from tests.reporting.parsed import Parsed

QALIGN, RALIGN = (50.0, 42.0, 47.0), (10.0, 14.0, 9.0)


def run(folder, qalign, ralign, **config):
    """A run with two systems on one benchmark, all of whose accuracies are alike."""
    (folder / "evaluation").mkdir(parents=True)
    config = {"name": "own", "seed": 0, "stages": ["evaluation"], **config}
    (folder / "config.json").write_text(json.dumps(config))
    versus = {"difference": qalign - ralign, "interval": [0.0, 99.0], "p": 0.01}
    systems = {
        name: {"mgsm": {key: value for key in ("de", "en", "average", "non_english")}}
        for name, value in (("ralign", ralign), ("qalign", qalign))
    }
    for name in systems:
        systems[name]["mgsm"]["intervals"] = {"average": [0, 99], "non_english": [0, 99]}
    systems["qalign"]["mgsm"]["versus"] = {"baseline": "ralign", "non_english": versus}
    (folder / "evaluation" / "results.json").write_text(json.dumps({"systems": systems}))
    return folder


@pytest.fixture
def seeds(tmp_path):
    return [
        run(tmp_path / f"seed{n}", *pair, seed=n, cache_dir=f"cache{n}", tuning={"seed": n})
        for n, pair in enumerate(zip(QALIGN, RALIGN, strict=True))
    ]


def test_runs_that_differ_in_seed_and_place_are_one_group(seeds, tmp_path):
    large = run(tmp_path / "large", 60.0, 20.0, tuning={"preset": "large"})
    found = compare.groups(compare.read([*seeds, large]))
    assert [[each.label for each in group.runs] for group in found] == [
        ["seed 0", "seed 1", "seed 2"],
        ["seed 0"],
    ]
    assert [group.name for group in found] == ["own (seed0)", "own (large)"]
    assert found[0].differs == ""
    assert found[1].differs == 'tuning was {}, is (absent); tuning.preset was (absent), is "large"'


def test_runs_of_one_seed_are_told_apart_by_their_folders(tmp_path):
    runs = [run(tmp_path / name, 50.0, 10.0) for name in ("a", "b")]
    [group] = compare.groups(compare.read(runs))
    assert [each.label for each in group.runs] == ["a", "b"]
    other = run(tmp_path / "deep" / "a", 50.0, 10.0)
    [group] = compare.groups(compare.read([runs[0], other]))
    assert [each.label for each in group.runs] == [str(runs[0]), str(other)]


def test_means_have_students_intervals(seeds):
    [group] = compare.groups(compare.read(seeds))
    found = compare.accuracies(group, "mgsm")["qalign"]["non-English"]
    low, high = stats.t.interval(0.95, 2, np.mean(QALIGN), stats.sem(QALIGN))
    assert found.mean == pytest.approx(np.mean(QALIGN))
    assert found.interval == pytest.approx((low, high))
    assert found.values == {"seed 0": 50.0, "seed 1": 42.0, "seed 2": 47.0}
    assert compare.over_runs({"seed 0": 5.0}) == Mean(5.0, None, {"seed 0": 5.0})
    assert compare.over_runs({"a": 5.0, "b": 5.0}).interval == (5.0, 5.0)


def test_differences_are_taken_run_by_run(seeds):
    [group] = compare.groups(compare.read(seeds))
    each = np.subtract(QALIGN, RALIGN)
    found = compare.differences(group, "mgsm")["qalign", "ralign", "non-English"]
    assert list(found.values.values()) == each.tolist()
    test = stats.ttest_1samp(each, 0.0).confidence_interval(0.95)
    assert found.interval == pytest.approx((test.low, test.high))


def test_the_page_shows_means_runs_and_differences(seeds, tmp_path):
    parsed = Parsed(compare.write(seeds, tmp_path / "page.html").read_text())
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.table("Differences to the baseline")[1:] == [
        ["qalign", "ralign", "non-English", "+40.0", "+28.0", "+38.0", "+35.3", "+19.4 to +51.3"]
    ]
    assert parsed.table("Accuracy in per cent, means over runs") == [
        ["system", "runs", "de", "en", "non-English", "average"],
        ["ralign", "3", *["11.0"] * 4],
        ["qalign", "3", *["46.3"] * 4],
    ]
    rows = parsed.table("Accuracy in per cent, every run")[1:]
    assert [row[:3] for row in rows] == [
        [system, f"seed {n}", f"{value:.1f}"]
        for system, values in (("ralign", RALIGN), ("qalign", QALIGN))
        for n, value in enumerate(values)
    ]
    assert "qalign, de: 46.3 % (36.3 to 56.4)" in parsed.titles
    assert "qalign: 42.0 %" in parsed.titles  # one run's dot
    [headline] = parsed.texts("headline")
    assert " ".join(headline.split()) == (
        "mgsm, languages other than English 46.3% qalign 11.0% ralign +35.3 points, "
        "95 % interval +19.4 to +51.3, 3 runs"
    )


def test_groups_stand_side_by_side(seeds, tmp_path):
    large = run(tmp_path / "large", 60.0, 20.0, name="large")
    parsed = Parsed(compare.write([*seeds, large], tmp_path / "page.html").read_text())
    assert "qalign, own: 46.3 % (36.3 to 56.4)" in parsed.titles
    assert "qalign, large: 60.0 %" in parsed.titles
    assert len(parsed.ids) == len(set(parsed.ids))


def test_what_cannot_be_compared_is_refused(seeds, tmp_path):
    with pytest.raises(ValueError, match=r"--output=.* is a folder; name a file"):
        compare.write(["one", "two"], tmp_path)
    with pytest.raises(
        ValueError, match=r"seed0/config\.json: expected a name that ends in \.html"
    ):
        compare.write(seeds, seeds[0] / "config.json")
    with pytest.raises(ValueError, match="expected two runs or more"):
        compare.read(seeds[:1])
    with pytest.raises(ValueError, match="seed0 is named twice"):
        compare.read([seeds[0], tmp_path / "seed1" / ".." / "seed0"])
    with pytest.raises(ValueError, match="--compare=nowhere: there is no such folder"):
        compare.read([seeds[0], "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no config"):
        compare.read([seeds[0], tmp_path / "empty"])
    (tmp_path / "empty" / "config.json").write_text('{"stages": []}')
    with pytest.raises(ValueError, match="empty has no results yet; run its evaluation"):
        compare.read([seeds[0], tmp_path / "empty"])


def report(*arguments, cwd):
    command = [sys.executable, "-m", "qalign_jax.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_the_command_takes_runs_behind_the_flag_or_between_commas(seeds, tmp_path):
    names = [str(seed) for seed in seeds]
    for arguments, page in (
        ([f"--compare={','.join(names)}"], "comparison.html"),
        (["--compare", *names[:2], "--output=own.html", names[2]], "own.html"),
    ):
        ended = report(*arguments, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout.splitlines()[-1]) == {"runs": names, "report": page}
        assert (tmp_path / page).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --workdir=DIR, or --compare RUN1 RUN2"),
        (("runs/demo",), "unexpected argument 'runs/demo'"),
        (("--workdir=a", "--compare=b,c"), "--workdir and --compare: give one of them"),
        (("--workdir=a", "--output=b"), "--output goes with --compare"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path):
    ended = report(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("error:") and message in line
