"""launch/tpu_vm.sh against a fake gcloud, its remote commands run in folders that are workers."""

import re
import shlex

import pytest

PLACE = ("--name=slice", "--zone=us-west4-a")
RECIPE = ("--config=configs/math_cot.py:llama2_7b,v5e-4", "--workdir=gs://bucket/run")
UP = (*PLACE, "--poll=0", *RECIPE)
CAPACITY = "ERROR: (gcloud) {'code': 8, 'message': 'There is no more capacity in the zone \"z\"'}"
RESERVED = "ERROR: (gcloud) {'code': 8, 'message': 'Insufficient reserved capacity.'}"
QUOTA = "ERROR: (gcloud) 429: Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded."


def verbs(cloud):
    return [call[4] for call in cloud.calls("tpus")]


def test_up_creates_the_recipes_slice_installs_the_commit_and_runs_it(cloud):
    odd = "--config.evaluation.benchmarks.mgsm.languages=('de', \"fr\", '$HOME')"
    status, _, said = cloud.run("tpu_vm.sh", *UP, odd, "--spot", "--env=TOKEN=a b", "--", "--x=*")
    assert status == 0, said
    assert verbs(cloud) == ["describe", "create", "describe", "scp", "ssh", "ssh", "ssh"]
    assert cloud.calls("create") == [
        ["gcloud", "compute", "tpus", "tpu-vm", "create", "slice", "--accelerator-type=v5litepod-4",
         "--version=v2-alpha-tpuv5-lite", "--spot", "--zone=us-west4-a"]
    ]  # fmt: skip
    assert cloud.starts() == ["|".join(("a b", *RECIPE, odd, "--x=*"))]
    home = cloud.home()
    assert "all is done" in (home / "run.log").read_text()
    assert (home / "qalign_jax/run.exit").read_text() == "0\n"
    assert (home / "qalign_jax/current").readlink().name in cloud.calls("scp")[0][5]
    _, venv, install = (home / "uv.log").read_text().splitlines()
    assert venv == f"venv --quiet --python 3.12 {home}/qalign_jax/venv"
    code = (home / "qalign_jax/current").resolve()
    assert install.endswith(f"--constraint {code}/constraints.txt --editable {code}[tpu]")
    assert (home / "sudo.log").read_text().endswith("install -y bubblewrap\n")
    assert "the run is done: gs://bucket/run" in said


def test_a_dry_run_prints_the_commands_of_a_real_run_and_runs_none(cloud):
    arguments = (*UP, "--config.prompt=it's $5", "--env=TOKEN=a b", "--internal-ips", "--project=p")
    status, printed, said = cloud.run("tpu_vm.sh", *arguments, "--dry-run")
    assert status == 0 and not cloud.calls() and "dry run" in said
    assert cloud.run("tpu_vm.sh", *arguments)[0] == 0
    commands = [shlex.split(line) for line in printed.splitlines()]
    real = cloud.calls()
    del real[2]  # what it is after it was created
    assert [words for words in commands if words[0] == "gcloud"] == real
    assert [words[0] for words in commands].count("git") == 1


@pytest.mark.parametrize("text", [CAPACITY, RESERVED])
def test_capacity_is_waited_for(cloud, text):
    for _ in range(3):
        cloud.answer("tpu-vm create", text)
    status, _, said = cloud.run("tpu_vm.sh", "create", *PLACE, "--slice=v5e-4", "--poll=0")
    assert status == 0 and len(cloud.calls("create")) == 4
    assert said.count("no capacity for v5litepod-4 in us-west4-a") == 3


def test_waits_double_up_to_ten_minutes(cloud):
    (cloud.folder / "bin/sleep").write_text('#!/bin/sh\necho "$1" >> "$FAKE_CLOUD/slept"\n')
    (cloud.folder / "bin/sleep").chmod(0o755)
    for _ in range(8):
        cloud.answer("tpu-vm create", CAPACITY)
    assert cloud.run("tpu_vm.sh", "create", *PLACE, "--slice=v5e-4")[0] == 0
    slept = (cloud.folder / "slept").read_text().split()
    assert slept == ["30", "60", "120", "240", "480", "600", "600", "600"]


def test_an_exceeded_quota_is_not_asked_for_again(cloud):
    cloud.answer("tpu-vm create", QUOTA)
    status, _, said = cloud.run("tpu_vm.sh", *UP)
    assert status == 1 and len(cloud.calls("create")) == 1
    assert "Quota limit" in said and "the quota does not allow v5litepod-4 in us-west4-a" in said


def test_another_error_of_gcloud_is_shown_and_ends_it(cloud):
    cloud.answer("tpu-vm create", "ERROR: PERMISSION_DENIED: no")
    status, _, said = cloud.run("tpu_vm.sh", *UP)
    assert status == 1 and "PERMISSION_DENIED" in said and len(cloud.calls("create")) == 1


def test_a_slice_that_exists_is_taken(cloud):
    assert cloud.run("tpu_vm.sh", "create", *PLACE, "--slice=v5e-4")[0] == 0
    cloud.answer("tpu-vm describe", "ERROR: NOT_FOUND")  # made by another between the two calls
    assert cloud.run("tpu_vm.sh", *UP)[0] == 0
    assert len(cloud.calls("create")) == 2 and len(cloud.starts()) == 1


def test_after_a_preemption_in_the_middle_a_new_slice_resumes_the_run(cloud):
    cloud.plan("wait", "0")
    cloud.answer("worker.sh status", state="PREEMPTED", status=255)
    status, _, said = cloud.run("tpu_vm.sh", *UP)
    assert status == 0 and "slice is PREEMPTED: pre-empted; the run is resumed" in said
    assert verbs(cloud).count("create") == verbs(cloud).count("scp") == 2
    assert cloud.calls("delete")[0][5:] == ["slice", "--quiet", "--zone=us-west4-a"]
    first, second = cloud.starts()
    assert first == second == "|".join(("", *RECIPE))


def test_a_preemption_while_the_code_is_copied_counts_as_one(cloud):
    cloud.answer("tpu-vm scp", state="PREEMPTED", status=1)
    status, _, _ = cloud.run("tpu_vm.sh", *UP)
    assert status == 0 and verbs(cloud).count("create") == 2 and len(cloud.starts()) == 1


def test_a_slice_found_preempted_is_made_anew(cloud):
    cloud.answer("tpu-vm create", state="PREEMPTED", status=0)
    cloud.hosts = 1
    assert cloud.run("tpu_vm.sh", "create", *PLACE, "--slice=v5e-4", "--poll=0")[0] == 1
    assert verbs(cloud)[:4] == ["describe", "create", "describe", "delete"]


def test_a_users_mistake_ends_with_status_2_and_is_not_started_again(cloud):
    cloud.plan("2 error: no stage 'x'", "0")
    status, _, said = cloud.run("tpu_vm.sh", *UP)
    assert status == 2 and len(cloud.starts()) == 1
    assert "worker w-0: exit 2: error: no stage 'x'" in said


def test_without_space_it_is_not_started_again(cloud):
    cloud.plan("74 error: no space left", "0")
    status, _, said = cloud.run("tpu_vm.sh", *UP)
    assert status == 1 and len(cloud.starts()) == 1
    assert "worker w-0: exit 74: error: no space left" in said
    assert "the run cannot write; when it can again" in said


def test_failures_are_started_again_so_many_times(cloud):
    cloud.plan("75 error: process 1 on b has ended", "143 terminated", "137", "1 boom", "0")
    assert cloud.run("tpu_vm.sh", *UP, "--max-failures=4")[0] == 0
    assert len(cloud.starts()) == 5
    cloud.plan(*["0"] * 5, *["1 boom"] * 3)
    status, _, said = cloud.run("tpu_vm.sh", *UP, "--max-failures=2")
    assert status == 1 and len(cloud.starts()) == 8
    assert said.count("worker w-0: exit 1: boom") == 3 and "failed 3 times in a row" in said


def test_all_workers_run_and_all_must_be_done(cloud):
    cloud.hosts = 2
    arguments = [word.replace("v5e-4", "v4-16") for word in UP]
    assert cloud.run("tpu_vm.sh", *arguments)[0] == 0
    assert cloud.starts(0) == cloud.starts(1) and len(cloud.starts(1)) == 1


def test_a_worker_that_does_not_answer_is_named(cloud):
    cloud.hosts = 2
    arguments = [word.replace("v5e-4", "v4-16") for word in UP]
    for _ in range(5):
        cloud.answer("worker.sh start", "Connection timed out", status=255)
    cloud.answer("--worker=1 --command=true", status=255)
    status, _, said = cloud.run("tpu_vm.sh", *arguments)
    assert status == 1 and "no ssh to worker 1 of slice in 5 tries" in said


def test_ssh_is_tried_again(cloud):
    cloud.answer("worker.sh install", "Connection reset", status=255)
    cloud.answer("tpu-vm scp", "Connection reset", status=255)
    assert cloud.run("tpu_vm.sh", *UP)[0] == 0 and len(cloud.starts()) == 1


def test_a_run_that_lives_is_watched_and_no_second_one_is_started(cloud):
    cloud.plan("wait", "0")
    with cloud.started("tpu_vm.sh", *UP):  # which is killed as soon as the run lives
        cloud.wait_for(cloud.folder / "starts-w-0")
    cloud.wait_for(cloud.home() / "qalign_jax/run.pid")
    status, _, said = cloud.run("tpu_vm.sh", *UP, "--config.seed=2")
    assert status == 1 and "refused: another run lives" in said
    (cloud.folder / "go").touch()
    assert cloud.run("tpu_vm.sh", *UP)[0] == 0
    assert len(cloud.starts()) <= 2  # the second only where the first had ended in the meantime
    assert len(cloud.calls("create")) == 1


def test_stop_ends_the_run_and_the_script_that_watches_it(cloud):
    cloud.plan("wait")
    assert cloud.run("tpu_vm.sh", "create", *PLACE, "--slice=v5e-4")[0] == 0
    assert cloud.run("tpu_vm.sh", "install", *PLACE)[0] == 0
    with cloud.started("tpu_vm.sh", "up", *UP) as run:
        cloud.wait_for(cloud.folder / "starts-w-0")
        assert "worker w-0: running" in cloud.run("tpu_vm.sh", "status", *PLACE)[1]
        assert cloud.run("tpu_vm.sh", "stop", *PLACE)[0] == 0
        assert run.wait(timeout=30) == 1
    assert "worker w-0: exit 143, stopped" in cloud.run("tpu_vm.sh", "status", *PLACE)[1]
    assert len(cloud.starts()) == 1


def test_run_needs_what_install_leaves(cloud):
    cloud.run("tpu_vm.sh", "create", *PLACE, "--slice=v5e-4")
    status, _, said = cloud.run("tpu_vm.sh", "run", *UP)
    assert status == 1 and "worker.sh: No such file" in said


def test_logs_follow_a_worker_of_choice(cloud):
    _, printed, _ = cloud.run("tpu_vm.sh", "logs", *PLACE, "--worker=3", "--dry-run")
    assert shlex.split(printed)[4:] == [
        "ssh", "slice", "--worker=3", "--command=tail -n 50 -F run.log", "--zone=us-west4-a"
    ]  # fmt: skip


def test_deleting_what_is_gone_is_fine(cloud):
    cloud.run("tpu_vm.sh", "create", *PLACE, "--slice=v5e-4")
    assert "slice is deleted" in cloud.run("tpu_vm.sh", "delete", *PLACE)[2]
    status, _, said = cloud.run("tpu_vm.sh", "delete", *PLACE)
    assert status == 0 and "there is no slice in us-west4-a" in said


def test_uncommitted_changes_are_told_and_stay(cloud):
    (cloud.checkout / "qalign_jax/run.py").write_text("raise SystemExit(5)")
    status, _, said = cloud.run("tpu_vm.sh", *UP)
    assert status == 0 and "uncommitted changes stay here" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fly", *UP), "no action fly; there are up create install"),
        (UP[1:], "--name=: expected"),
        (("--name=Slice", *UP[1:]), "--name=Slice: expected up to 40 lower-case letters"),
        ((UP[0], *UP[2:]), "no zone: --zone="),
        ((*UP, "--workdir=runs/a"), "--workdir=runs/a must be a gs:// path"),
        ((*PLACE, RECIPE[1]), "no recipe: --config="),
        ((*UP, "--spto"), "no option --spto .* stand behind --"),
        ((*UP, "--node-count=2"), "no option --node-count=2"),
        ((*UP, "--poll"), "--poll needs a value: --poll=VALUE"),
        ((*UP, "--spot=no"), "--spot=no: --spot takes no value"),
        ((*UP, "--poll=soon"), "--poll=soon: expected a number"),
        ((*UP, "--env=TOKEN"), "expected --env=NAME=VALUE"),
        ((*UP, "--slice=v4-8"), "--slice=v4-8 is not the recipe's v5e-4"),
        ((*PLACE, "--config=a.py:tiny", RECIPE[1]), "no slice: name it in the recipe's argument"),
        ((*PLACE, "--config=a.py:tiny,v4-8,v4-16", RECIPE[1]), "names several slices"),
        ((*PLACE, "--config=a.py:tiny,v7x-8", RECIPE[1]), "no slice v7x-8; the chips are v4, v5e"),
        ((*PLACE, "--config=a.py:tiny,v5p-9", RECIPE[1]), "no slice v5p-9; v5p has 2x2x1, .*cores"),
        ((*PLACE, "--config=a.py:tiny,v5e:4x4x4", RECIPE[1]), "v5e has 1x1, 2x2, .* their chips"),
    ],
)  # fmt: skip
def test_a_mistake_ends_with_status_2_before_any_call(cloud, arguments, message):
    status, _, said = cloud.run("tpu_vm.sh", *arguments)
    assert status == 2 and re.search(message, said), said
    assert len(said.splitlines()) == 1 and not cloud.calls()


def test_without_gcloud_it_says_so(cloud, monkeypatch):
    for name in (cloud.folder / "bin").iterdir():
        name.unlink()
    (cloud.folder / "worker-bin/dirname").symlink_to("/usr/bin/dirname")
    monkeypatch.setenv("PATH", str(cloud.folder / "worker-bin"))
    status, _, said = cloud.run("tpu_vm.sh", *UP)
    assert status == 2 and "gcloud is not on PATH; install the Google Cloud CLI" in said
