"""A run that is killed, or whose files are damaged, ends as one left alone; kills.py tries more."""

import random
import shutil

import pytest

from tests.survival import kills

MOMENTS = 5


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return kills.left_alone(tmp_path_factory.mktemp("survival"), MOMENTS)


@pytest.fixture
def rng():
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.slow
def test_training_killed_at_random_moments_ends_bit_identical(alone, rng):
    tried = kills.killed_training(alone, MOMENTS, rng)
    assert (tried["step"], tried["save"], tried["start"]) == (2, 2, 1)
    # a kill in a save loses that save; else what came since the last one
    assert tried["most steps lost"] <= 2 * kills.SAVE_EVERY


@pytest.mark.slow
def test_evaluation_killed_at_random_moments_keeps_every_finished_answer_once(alone, rng):
    kills.killed_evaluation(alone, 3, rng)


def harm(step_dir, rng, size):
    """Random bytes in the largest file of a checkpoint, which holds arrays."""
    file = max((step_dir / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content) - size)
    content[place : place + size] = rng.randbytes(size)
    file.write_bytes(content)


@pytest.mark.slow
def test_a_run_whose_newest_checkpoint_is_damaged_goes_back_one_and_ends_bit_identical(alone, rng):
    run = kills.Run(alone.workdir.with_name("damaged"), *alone.arguments)
    with run.started() as process:
        run.wait(process, run.has_saved, 15)
    checkpoints = run.workdir / "base" / "checkpoints"
    steps = sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    harm(checkpoints / str(steps[-1]), rng, 8)
    run.finish()
    log = run.log.read_text()
    assert f"checkpoints/{steps[-1]} is damaged: " in log
    assert f"goes back to step {steps[-2]}, which is whole" in log
    kills.compare(run, alone)


@pytest.mark.slow
def test_a_finished_stage_that_is_damaged_is_neither_evaluated_nor_trained_on(alone, rng):
    run = kills.Run(alone.workdir.with_name("ruined"), *alone.arguments)
    unfinished = shutil.ignore_patterns("evaluation", "tuned")
    shutil.copytree(alone.workdir, run.workdir, ignore=unfinished)
    harm(run.workdir / "base" / "checkpoints" / "20", rng, 2000)
    with pytest.raises(
        SystemExit, match=r"status 2(.|\n)*error: .*20 is damaged: .*[Dd]elete .*base and"
    ):
        run.finish()
    assert (
        not list(run.workdir.glob(kills.ANSWERS)) and not (run.workdir / "tuned/done.json").exists()
    )


@pytest.mark.slow
def test_a_tokenizer_that_is_damaged_answers_nothing(alone):
    run = kills.Run(alone.workdir.with_name("other_words"), *alone.arguments)
    shutil.copytree(alone.workdir, run.workdir, ignore=shutil.ignore_patterns("evaluation"))
    file = run.workdir / "vocabulary" / "tokenizer.model"
    file.write_bytes(file.read_bytes().replace("\u2581the".encode(), "\u2581thq".encode(), 1))
    with pytest.raises(SystemExit, match=r"status 2(.|\n)*vocabulary/tokenizer.model is damaged"):
        run.finish()
    assert not list(run.workdir.glob(kills.ANSWERS))


@pytest.mark.release
def test_two_minutes_of_kills_leave_the_demo_s_training_bit_identical(tmp_path, rng):
    assert kills.soak(tmp_path, 2, rng)["kills"] > 5
