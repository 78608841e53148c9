"""The training loop stops on a signal and traces the requested steps."""

import gzip
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from qalign_jax.checkpoints.state import Checkpoints
from qalign_jax.data import packing
from qalign_jax.data.batches import Batches
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import random_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.training.loop import Preempted, train
from qalign_jax.training.optimizer import OptimizerConfig, Schedule
from qalign_jax.training.profile import Profile
from qalign_jax.training.step import abstract_state, init_state, make_train_step
from tests.files import write_jsonl

STEPS = 4
OPTIMIZER = OptimizerConfig()
CONFIG, EXECUTION = preset("tiny", vocab_size=420)


@pytest.fixture(scope="module")
def batches(tmp_path_factory, tokenizer):
    return make_batches(tmp_path_factory.mktemp("loop"), tokenizer)


def make_batches(folder, tokenizer):
    rows = [{"instruction": f"{i} and 1?", "response": f"The answer is {i + 1}."} for i in range(9)]
    source = {"name": "jsonl", "path": str(write_jsonl(folder / "own.jsonl", rows))}
    packed = packing.build({"own": source}, tokenizer, "short", 64, folder / "cache", 0)
    return Batches(packed, 2, seed=0)


def run(folder, batches, around_step=lambda number: None, **options):
    """Trains STEPS steps; calls `around_step` with the number of each before its dispatch."""
    mesh = make_mesh("single")
    step = make_train_step(Llama(CONFIG, EXECUTION), OPTIMIZER, mesh)
    checkpoints = Checkpoints(folder, every=100)
    number = 0

    def watched(*arguments):
        nonlocal number
        number += 1
        around_step(number)
        return step(*arguments)

    state = init_state(CONFIG, OPTIMIZER, mesh, random_params(CONFIG, mesh, 0))
    if restored := checkpoints.restore(abstract_state(CONFIG, OPTIMIZER, mesh).parts()):
        state = state.from_parts(restored[1])
    try:
        return train(
            state, watched, batches, Schedule(1e-3, STEPS), config=CONFIG, mesh=mesh,
            checkpoints=checkpoints, stage_dir=folder, name="loop", **options,
        )  # fmt: skip
    finally:
        checkpoints.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [2, STEPS])
def test_a_signal_stops_behind_the_running_step_be_it_the_last(at, number, batches, tmp_path):
    def interrupt(step):
        if step == at:
            os.kill(os.getpid(), number)

    with pytest.raises(Preempted) as stopped:
        run(tmp_path / "stopped", batches, interrupt)
    assert stopped.value.code == 128 + number
    saved = tmp_path / "stopped" / "checkpoints" / str(at)
    assert (saved / "params").exists() and (saved / "optimizer").exists() == (at < STEPS)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    if at < STEPS:
        resumed, straight = run(tmp_path / "stopped", batches), run(tmp_path / "whole", batches)
        jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)


def test_a_signal_while_the_first_step_compiles_ends_at_once(batches, tmp_path):
    def interrupt(step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, batches, interrupt)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_signal_while_the_final_state_is_saved_is_not_lost(batches, tmp_path, monkeypatch):
    save = Checkpoints.save

    def interrupted(self, step, parts, final=False):
        save(self, step, parts, final)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    with pytest.raises(Preempted):
        run(tmp_path, batches)


TRACED = """
import pathlib, sys
from qalign_jax.data.tokenizer import load_tokenizer
from qalign_jax.training.profile import Profile
from tests.training import test_loop

folder, model = map(pathlib.Path, sys.argv[1:])
batches = test_loop.make_batches(folder, load_tokenizer(model))
test_loop.run(folder / "traced", batches, profile=Profile(2, 3))
"""


@pytest.mark.slow
def test_a_trace_holds_the_requested_steps(tmp_path, model_file):
    """In a process of its own: the profiler crashes where libtpu has compiled ahead of time."""
    done = subprocess.run(
        [sys.executable, "-c", TRACED, tmp_path, model_file], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    profiles = tmp_path / "traced" / "tensorboard" / "plugins" / "profile"
    (trace,) = profiles.rglob("*.trace.json.gz")
    assert list(trace.parent.glob("*.xplane.pb"))
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["args"].get("step_num") for event in events if event.get("name") == "train"}
    assert steps == {"2", "3"}
    assert "wait_for_batch" in {event.get("name") for event in events}


@pytest.mark.parametrize("text", ["10", "0:3", "5:4", "a:b", "1:2:3", ":"])
def test_a_profile_is_a_first_and_a_last_step(text):
    assert Profile.parse("10:15") == Profile(10, 15)
    with pytest.raises(ValueError, match=f"--profile={text}: expected the first and the last"):
        Profile.parse(text)
