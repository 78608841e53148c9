"""launch/worker.sh in folders that are a worker's home."""

import subprocess

import pytest

from tests.launch.cloud import ROOT, commit, write_program


@pytest.fixture
def worker(cloud):
    """Calls worker.sh in a home with the checkout's archive; returns what it prints."""
    home = cloud.folder / "workers/w-0"
    home.mkdir(parents=True)
    environment = {
        "HOME": str(home), "HOSTNAME": "w-0", "FAKE_CLOUD": str(cloud.folder),
        "PATH": str(cloud.folder / "worker-bin"),
    }  # fmt: skip
    (home / "qalign_jax").mkdir()
    (home / "qalign_jax/worker.sh").write_bytes((ROOT / "launch/worker.sh").read_bytes())

    def call(*arguments: str) -> str:
        found = subprocess.run(
            ["bash", home / "qalign_jax/worker.sh", *arguments], env=environment, cwd=home,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        return found.stdout

    def give(name: str) -> None:
        archive = home / f"qalign_jax-{name}.tar.gz"
        words = ("archive", "--format=tar.gz", f"--output={archive}", "HEAD")
        subprocess.run(["git", *words], cwd=cloud.checkout, check=True)

    call.give, call.home = give, home
    return call


def test_a_commit_is_unpacked_into_a_folder_of_its_own_and_swapped_in(worker, cloud):
    worker.give("one")
    assert worker("install", "one") == "worker w-0: installed one\n"
    (cloud.checkout / "qalign_jax/extra.py").touch()
    commit(cloud.checkout)
    worker.give("two")
    assert worker("install", "two") == "worker w-0: installed two\n"
    base = worker.home / "qalign_jax"
    assert (base / "current").readlink().name == "two"
    assert (base / "two/qalign_jax/extra.py").exists()
    assert not (base / "one/qalign_jax/extra.py").exists()


def test_installing_again_does_nothing(worker):
    worker.give("one")
    worker("install", "one")
    before = (worker.home / "uv.log").read_text()
    assert worker("install", "one") == "worker w-0: has one\n"
    # a retry of the install on all workers reads it again
    assert (worker.home / "qalign_jax-one.tar.gz").exists()
    assert (worker.home / "uv.log").read_text() == before


def test_an_install_that_was_interrupted_is_made_whole(worker):
    worker.give("one")
    (worker.home / "qalign_jax/one.new").mkdir()
    (worker.home / "qalign_jax/one/half").mkdir(parents=True)
    worker("install", "one")
    assert not (worker.home / "qalign_jax/one/half").exists()


@pytest.mark.parametrize("version", ["0.4.30", ""])
def test_uv_is_brought_where_it_is_absent_or_too_old(worker, cloud, version):
    uv, python = cloud.folder / "worker-bin/uv", cloud.folder / "worker-bin/python3"
    good = uv.read_text()
    (cloud.folder / "good").write_text(good)
    uv.unlink()
    if version:
        write_program(uv, f"#!/usr/bin/env bash\necho uv {version}\n")
    bring = (
        '#!/usr/bin/env bash\necho "$*" > "$HOME/pip.log"\nmkdir -p "$HOME/.local/bin"\n'
        'cat "$FAKE_CLOUD/good" > "$HOME/.local/bin/uv"\n/bin/chmod +x "$HOME/.local/bin/uv"\n'
    )
    write_program(python, bring)
    worker.give("one")
    assert worker("install", "one") == "worker w-0: installed one\n"
    assert (
        worker.home / "pip.log"
    ).read_text() == "-m pip install --quiet --user --upgrade uv>=0.5.0\n"
    assert "venv --quiet --python 3.12" in (worker.home / "uv.log").read_text()


def test_without_bubblewrap_the_rest_is_installed(worker, cloud):
    write_program(cloud.folder / "worker-bin/sudo", "#!/usr/bin/env bash\nexit 100\n")
    worker.give("one")
    said = worker("install", "one").splitlines()
    assert said == [
        "worker w-0: no bubblewrap: recipes that run code refuse", "worker w-0: installed one"
    ]  # fmt: skip


def test_another_commit_is_refused_while_a_run_lives(worker, cloud):
    cloud.plan("wait")
    worker.give("one")
    worker("install", "one")
    worker("start", "--a=1")
    assert worker("start", "--a=1") == "worker w-0: runs already\n"
    assert worker("start", "--a=2") == "worker w-0: refused: another run lives: --a=1\n"
    assert worker("install", "two") == "worker w-0: refused: a run of one lives\n"
    assert worker("status") == "worker w-0: running\n"
    assert worker("stop") == "worker w-0: stopped\n"
    assert worker("status").startswith("worker w-0: exit 143")


def test_states_without_a_run_are_told_apart(worker):
    assert worker("start") == "worker w-0: refused: nothing is installed\n"
    assert worker("status") == "worker w-0: no run\n"
    (worker.home / "qalign_jax/run.pid").write_text("1\n")  # the machine has started anew since
    assert worker("status") == "worker w-0: died\n"
    (worker.home / "qalign_jax/run.exit").write_text("0\n")
    assert worker("status") == "worker w-0: exit 0\n"


def test_the_log_has_every_start_and_its_end(worker, cloud):
    cloud.plan("3 first", "0 second")
    worker.give("one")
    worker("install", "one")
    for status in (3, 0):
        (cloud.folder / "workers/w-0/qalign_jax/run.exit").unlink(missing_ok=True)
        worker("start", "--seed=1")
        cloud.wait_for(worker.home / "qalign_jax/run.exit")
        assert worker("status").startswith(f"worker w-0: exit {status}")
    lines = [
        line.partition(" ")[2] or line
        for line in (worker.home / "run.log").read_text().splitlines()
    ]
    assert lines == [
        "one: qalign_jax.run --seed=1", "first", "exit 3",
        "one: qalign_jax.run --seed=1", "second", "exit 0",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_packages_own_message_comes_back_with_status_2(cloud):
    tracked = subprocess.run(
        ["git", "ls-files", "qalign_jax", "configs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in tracked:
        path = cloud.checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes())
    commit(cloud.checkout)
    status, _, said = cloud.run(
        "tpu_vm.sh", "--name=a", "--zone=z", "--poll=1", "--slice=v5e-1", "--env=JAX_PLATFORMS=cpu",
        "--config=configs/demo.py", "--config.pretraining.lr=-1", "--workdir=gs://bucket/run",
        "--stages=nothing",
    )  # fmt: skip
    assert status == 2
    told = (
        "error: 2 mistakes 1. pretraining.lr=-1.0; expected at least 0 2. no stage 'nothing'; the"
    )
    assert f"worker w-0: exit 2: {told} recipe's stages are" in said
