"""Progress of long work, in a log."""

import io
import re
import sys

from qalign_jax import progress


def test_speed_and_time_left_leave_out_what_compiled_with_the_first_unit(monkeypatch, caplog):
    clock = iter([0.0, 100.0, 105.0, 110.0, 120.0])  # made; the first unit takes 100 seconds
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO", logger="absl"):
        shown = progress.Progress("training", 10)
        for _ in range(4):
            shown.add(tokens=50)
    lines = [re.sub(r".*training: ", "", record.getMessage()) for record in caplog.records]
    # two units in 10 seconds, then three in 20
    assert lines == [
        "step 3 of 10, 10 tokens/s, 00:35 left",
        "step 4 of 10, 8 tokens/s, 00:40 left",
    ]


def test_units_that_end_at_once_have_the_speed_of_all_the_time(monkeypatch, caplog):
    clock = iter([0.0, 9.9, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO", logger="absl"):
        shown = progress.Progress("generate", 2, unit="answer")
        for _ in range(2):
            shown.add(tokens=50)
    assert caplog.records[-1].getMessage() == "generate: answer 2 of 2, 10 tokens/s, 00:00 left"


def test_a_single_unit_has_the_speed_of_itself(monkeypatch, caplog):
    clock = iter([0.0, 5.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO", logger="absl"):
        progress.Progress("writing", 1, unit="tensor").add(tokens=50)
    assert caplog.records[-1].getMessage() == "writing: tensor 1 of 1, 10 tokens/s, 00:00 left"


def test_a_bar_on_a_terminal_shows_the_same_speed(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    clock = iter([0.0, 100.0, 105.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    shown = progress.Progress("generate", 4, unit="answer")
    for _ in range(3):
        shown.add(tokens=50, loss=0.5)
    assert "3/4" in str(shown._bar) and "loss 0.5000, 5 tokens/s]" in str(shown._bar)
    shown.close()
