"""launch/queued.sh: the states of a queued resource, and several slices."""

import shlex

PLACE = ("--name=slice", "--zone=us-east5-a", "--poll=0")
RECIPE = ("--config=configs/math_cot.py:llama2_7b,v5p-8", "--workdir=gs://bucket/run")
REQUEST = ["--node-id=slice", "--accelerator-type=v5p-8", "--runtime-version=v2-alpha-tpuv5"]


def test_up_waits_until_the_request_is_active_and_runs(cloud):
    for state in ("", "ACCEPTED", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING"):
        more = {"stderr": "NOT_FOUND"} if not state else {"stdout": state}
        cloud.answer("queued-resources describe", **more)
    status, _, said = cloud.run("queued.sh", *PLACE, *RECIPE, "--spot", "--valid-until-duration=6h")
    assert status == 0 and len(cloud.starts()) == 1, said
    assert cloud.calls("create")[0][5:] == [
        "slice", *REQUEST, "--spot", "--valid-until-duration=6h", "--zone=us-east5-a"
    ]  # fmt: skip
    assert len(cloud.calls("create")) == 1 and said.count("waiting") == 3


def test_a_failed_request_is_deleted_for_its_quota_and_made_again(cloud):
    cloud.answer("queued-resources create", state="FAILED")
    (cloud.folder / "workers").mkdir()
    cloud.answer("failedData", stdout="{'code': 8, 'message': 'Insufficient reserved capacity.'}")
    status, _, said = cloud.run("queued.sh", *PLACE, *RECIPE)
    assert status == 0, said
    verbs = [call[4] for call in cloud.calls("queued-resources")]
    assert verbs[:6] == ["describe", "create", "describe", "describe", "delete", "describe"]
    assert cloud.calls("delete")[0][5:] == ["slice", "--force", "--quiet", "--zone=us-east5-a"]
    assert verbs.count("create") == 2


def test_a_request_that_failed_for_its_quota_is_deleted_and_not_made_again(cloud):
    cloud.answer("queued-resources create", state="FAILED")
    (cloud.folder / "workers").mkdir()
    cloud.answer("failedData", stdout="429: Quota limit 'TPUV5PPerProject' exceeded")
    status, _, said = cloud.run("queued.sh", *PLACE, *RECIPE)
    assert status == 1 and "the quota does not allow v5p-8" in said
    assert len(cloud.calls("create")) == len(cloud.calls("delete")) == 1


def test_requests_that_fail_for_other_reasons_end_it(cloud):
    (cloud.folder / "workers").mkdir()
    for _ in range(3):
        cloud.answer("queued-resources create", state="FAILED")
        cloud.answer("failedData", stdout="internal error")
        cloud.answer("queued-resources delete")
        cloud.answer("state.state", "NOT_FOUND")
        cloud.answer("state.state", stdout="FAILED")
    status, _, said = cloud.run("queued.sh", *PLACE, *RECIPE)
    assert status == 1 and "FAILED 3 times: internal error" in said
    assert len(cloud.calls("delete")) == 3


def test_a_suspended_request_was_preempted_and_the_run_is_resumed(cloud):
    cloud.plan("wait", "0")
    cloud.answer("worker.sh status", state="SUSPENDING", status=255)
    cloud.answer("state.state", "NOT_FOUND")  # at the start
    for state in ("ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED"):
        cloud.answer("state.state", stdout=state)
    status, _, said = cloud.run("queued.sh", *PLACE, *RECIPE)
    assert status == 0 and "slice is SUSPENDED: it is deleted and asked for anew" in said
    assert len(cloud.calls("create")) == 2 and len(cloud.starts()) == 2


def test_several_slices_are_asked_for_and_all_their_workers_run(cloud):
    cloud.hosts = 4
    recipe = (
        RECIPE[0].replace("v5p-8", "v5p-16"),
        RECIPE[1],
        "--config.mesh=data:2,fsdp:4,tensor:2",
    )
    status, _, said = cloud.run("queued.sh", *PLACE, *recipe, "--node-count=2")
    assert status == 0, said
    assert cloud.calls("create")[0][6] == "--node-count=2"
    assert all("--node=all" in call and "--worker=all" in call for call in cloud.calls("ssh"))
    assert [len(cloud.starts(worker)) for worker in range(4)] == [1] * 4
    assert "4 of 4" not in said  # done at the first look, which counts both slices' hosts


def test_workers_that_do_not_answer_are_not_taken_for_done(cloud):
    cloud.hosts = 4
    cloud.run("queued.sh", "create", *PLACE, "--slice=v5p-16", "--node-count=2")
    cloud.run("queued.sh", "install", *PLACE)
    cloud.answer("worker.sh status", stdout="worker w-0: exit 0\nworker w-1: exit 0\n")
    recipe = (RECIPE[0].replace("v5p-8", "v5p-16"), RECIPE[1])
    assert cloud.run("queued.sh", "run", *PLACE, *recipe, "--node-count=2")[0] == 1


def test_a_worker_of_several_slices_is_named_by_slice_and_number(cloud):
    cloud.hosts = 4
    cloud.run("queued.sh", "create", *PLACE, "--slice=v5p-16", "--node-count=2")
    for _ in range(5):
        cloud.answer("worker.sh start", "timed out", status=255)
    cloud.answer("--node=1 --worker=1", status=255)
    recipe = (RECIPE[0].replace("v5p-8", "v5p-16"), RECIPE[1])
    status, _, said = cloud.run("queued.sh", "run", *PLACE, *recipe, "--node-count=2")
    assert status == 1 and "no ssh to worker 1/1 of slice" in said


def test_logs_are_those_of_the_first_slice(cloud):
    _, printed, _ = cloud.run("queued.sh", "logs", *PLACE, "--dry-run")
    assert shlex.split(printed)[3:8] == [
        "queued-resources", "ssh", "slice", "--node=0", "--worker=0"
    ]  # fmt: skip


def test_no_slices_at_all_are_refused(cloud):
    status, _, said = cloud.run("queued.sh", *PLACE, *RECIPE, "--node-count=0")
    assert status == 2 and "--node-count=0: expected at least 1" in said and not cloud.calls()
