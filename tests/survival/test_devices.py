"""A run goes on with another number of devices, and with another number of processes."""

import json
import os
import socket

import pytest

from tests.survival.kills import RECIPE, Run

STEPS = 60


def rows(workdir):
    return [json.loads(line) for line in (workdir / "base/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices_then_in_two_processes_and_has_the_same_losses(tmp_path):
    arguments = [
        f"--config={RECIPE}", f"--config.cache_dir={tmp_path / 'cache'}", "--config.mesh=fsdp:-1",
        "--config.base.rows=8", f"--config.base.steps={STEPS}", "--config.base.lr=1e-4",
        "--stages=vocabulary,base",
    ]  # fmt: skip

    def run(workdir, devices, *more, log=""):
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
        return Run(tmp_path / workdir, *arguments, *more, log=log, XLA_FLAGS=flags)

    def killed(run, step):
        """Kills a run when `step` is saved; returns the step of the newest checkpoint."""
        with run.started() as process:
            run.wait(process, run.has_saved, step)
        assert step <= run.saved() < STEPS - 10
        return run.saved()

    alone = run("alone", 8)
    alone.finish()
    of_eight = killed(run("changed", 8), 10)
    two = run("changed", 2)
    of_two = killed(two, of_eight + 10)
    assert f"base: goes on from step {of_eight}" in two.log.read_text()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"--coordinator=localhost:{free.getsockname()[1]}"
    first, second = (
        run("changed", 2, address, "--processes=2", f"--process={number}", log=f"process{number}")
        for number in range(2)
    )
    with second.started() as process:
        first.finish()
        process.join()
    assert process.exitcode == 0, second.log.read_text()

    assert f"base: goes on from step {of_two}" in first.log.read_text()
    straight, changed = rows(tmp_path / "alone"), rows(tmp_path / "changed")
    assert [row["step"] for row in changed] == list(range(1, STEPS + 1))
    for one, other in zip(straight, changed, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6), one["step"]
        for key in ("trained_tokens", "packing", "learning_rate"):
            assert other[key] == one[key], (key, one["step"])
