"""launch/gke.sh: its manifests against Kubernetes' schemas, and its calls of kubectl and xpk."""

import re
import shlex

import kubernetes_validate
import pytest
import yaml

NAME = ("--name=qalign", "--image=us-docker.pkg.dev/p/r/qalign_jax:1")
RECIPE = ("--config=configs/math_cot.py:llama2_7b,v5e-16", "--workdir=gs://bucket/run")


def manifest(cloud, *arguments: str) -> dict:
    status, printed, said = cloud.run("gke.sh", "print", *arguments)
    assert status == 0 and not cloud.calls(), said
    return yaml.safe_load(printed)


def pod(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--spot", "--privileged", "--service-account=run", "--env=A=a: {b}", "--node-count=2"),
    ],
)
def test_the_jobset_has_its_own_fields_and_a_job_that_kubernetes_knows(cloud, more):
    jobset = manifest(cloud, *NAME, *RECIPE, *more)
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"}
    spec = jobset["spec"]
    assert set(spec) == {"failurePolicy", "replicatedJobs"}
    assert spec["failurePolicy"] == {
        "maxRestarts": 10,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    (replicated,) = spec["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    assert replicated["replicas"] == (2 if more else 1)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": jobset["metadata"]}
    job |= {"spec": replicated["template"]["spec"]}
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    job["spec"]["completion"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="'completion' was unexpected"):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("where", "hosts", "chips", "selector", "topology"),
    [
        ("v5e-1", 1, 1, "tpu-v5-lite-podslice", "1x1"),
        ("v5e-8", 1, 8, "tpu-v5-lite-podslice", "2x4"),
        ("v5e-16", 4, 4, "tpu-v5-lite-podslice", "4x4"),
        ("v6e-256", 64, 4, "tpu-v6e-slice", "16x16"),
        ("v4-16", 2, 4, "tpu-v4-podslice", "2x2x2"),
        ("v5p-128", 16, 4, "tpu-v5p-slice", "4x4x4"),
    ],
)
def test_every_host_of_the_slice_is_one_pod_that_asks_for_its_chips(
    cloud, where, hosts, chips, selector, topology
):
    jobset = manifest(cloud, *NAME, *RECIPE[1:], "--config=a.py:tiny", f"--slice={where}")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert pod(jobset)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": selector,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    (container,) = pod(jobset)["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": chips}}
    # JobSet's own subdomain, by which GKE tells JAX the hosts, stands where none is given
    assert "subdomain" not in pod(jobset) and "network" not in jobset["spec"]


def test_a_mistake_or_no_space_fails_the_jobset_and_other_failures_start_it_again(cloud):
    jobset = manifest(cloud, *NAME, *RECIPE, "--max-restarts=3")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 3
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"]["rules"] == [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "run", "operator": "In", "values": [2, 74]},
        }
    ]
    assert pod(jobset)["restartPolicy"] == "Never"  # a pod failure policy needs it


def test_flags_and_variables_come_through_as_they_are(cloud):
    odd = (
        "--config.a=('de', \"fr\")",
        "--config.b=C:\\n",
        "--config.c=# no: [comment]",
        "--config.d=$(A) $$x",
        "--",
        "--d=é",
    )
    jobset = manifest(cloud, *NAME, *RECIPE, "--env=A=1", '--env=B=x: "y"', *odd)
    (container,) = pod(jobset)["containers"]
    # Kubernetes reads $$ as $, and $(A) as the variable A
    expected = [*RECIPE, *(word.replace("$", "$$") for word in odd if word != "--")]
    assert container["args"] == expected
    assert container["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": 'x: "y"'}]
    assert container["image"] == "us-docker.pkg.dev/p/r/qalign_jax:1"


def test_options_change_what_they_name(cloud):
    plain = pod(manifest(cloud, *NAME, *RECIPE))
    assert "serviceAccountName" not in plain and "securityContext" not in plain["containers"][0]
    jobset = manifest(
        cloud, *NAME, *RECIPE, "--spot", "--privileged", "--service-account=run", "--namespace=ml"
    )
    assert pod(jobset)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod(jobset)["containers"][0]["securityContext"] == {"privileged": True}
    assert pod(jobset)["serviceAccountName"] == "run"
    assert jobset["metadata"]["namespace"] == "ml"


def test_apply_gives_kubectl_the_manifest_that_print_prints(cloud):
    _, printed, _ = cloud.run("gke.sh", *NAME, *RECIPE)
    assert cloud.run("gke.sh", "apply", *NAME, *RECIPE)[0] == 0
    assert cloud.calls() == [["kubectl", "apply", "--filename=-"]]
    assert (cloud.folder / "applied").read_text() == printed
    _, dry, _ = cloud.run("gke.sh", "apply", *NAME, *RECIPE, "--dry-run")
    assert dry == f"kubectl apply --filename=- <<'EOF'\n{printed}EOF\n"
    assert len(cloud.calls()) == 1


def test_xpk_failing_is_the_scripts_status(cloud):
    cloud.answer("xpk workload", "error: no cluster c", status=3)
    assert cloud.run("gke.sh", "xpk", *NAME, *RECIPE, "--cluster=c")[0] == 3


def test_kubectl_failing_is_the_scripts_status(cloud):
    cloud.answer("kubectl apply", "error: no matches for kind JobSet", status=1)
    status, _, said = cloud.run("gke.sh", "apply", *NAME, *RECIPE)
    assert status == 1 and "no matches for kind JobSet" in said


def test_logs_status_and_delete_name_the_jobset(cloud):
    for action in ("logs", "status", "delete"):
        _, printed, _ = cloud.run("gke.sh", action, NAME[0], "--namespace=ml", "--dry-run")
        assert cloud.run("gke.sh", action, NAME[0], "--namespace=ml")[0] == 0
        calls = [shlex.split(line) for line in printed.splitlines()]
        assert cloud.calls()[-len(calls) :] == calls
    logs, jobset, pods, delete = cloud.calls()
    label = "--selector=jobset.sigs.k8s.io/jobset-name=qalign"
    assert logs[1:3] == ["logs", "--follow"]
    assert logs[-1] == f"{label},batch.kubernetes.io/job-completion-index=0"
    assert jobset[1:4] == ["get", "jobset", "qalign"] and pods[-1] == label
    assert delete == [
        "kubectl",
        "delete",
        "jobset",
        "qalign",
        "--namespace=ml",
        "--ignore-not-found",
    ]


def test_xpk_is_told_to_start_again_after_failures_but_not_after_a_mistake_or_no_space(cloud):
    more = ("--cluster=c", "--zone=z", "--project=p", "--spot", "--env=A=b c", "--config.x=it's")
    assert cloud.run("gke.sh", "xpk", *NAME, *RECIPE, *more)[0] == 0
    (call,) = cloud.calls()
    assert call[:3] == ["xpk", "workload", "create"]
    options = dict(word.partition("=")[::2] for word in call[3:])
    command = options.pop("--command")
    assert shlex.split(command) == ["python", "-m", "qalign_jax.run", *RECIPE, "--config.x=it's"]
    assert options == {
        "--cluster": "c", "--workload": "qalign", "--tpu-type": "v5litepod-16",
        "--num-slices": "1", "--docker-image": NAME[1].partition("=")[2], "--max-restarts": "10",
        "--restart-on-exit-codes": "1,75", "--zone": "z", "--project": "p", "--spot": "",
        "--env": "A=b c",
    }  # fmt: skip
    _, printed, _ = cloud.run("gke.sh", "xpk", *NAME, *RECIPE, *more, "--dry-run")
    assert shlex.split(printed) == call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAME[0], *RECIPE), "no image: --image="),
        ((*NAME, RECIPE[0], "--workdir=/tmp/a"), "must be a gs:// path"),
        ((*NAME, RECIPE[1]), "no recipe: --config="),
        ((*NAME, *RECIPE, "--reserved"), "no option --reserved"),
        ((*NAME, *RECIPE, "--env=A=a\nb"), "a line break or another"),
        (("xpk", *NAME, *RECIPE), "no cluster: --cluster=NAME"),
        (("xpk", *NAME, "--cluster=c", "--config=a.py:tiny,v5e-1", RECIPE[1]), "xpk knows no v5l"),
        (("up", *NAME, *RECIPE), "no action up; there are print apply xpk logs status delete"),
    ],
)  # fmt: skip
def test_a_mistake_ends_with_status_2_before_any_call(cloud, arguments, message):
    status, _, said = cloud.run("gke.sh", *arguments)
    assert status == 2 and re.search(message, said) and not cloud.calls(), said
