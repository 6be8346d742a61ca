"""Jobs on Kubernetes through its own client, against a server that speaks the API of KubeRay's objects."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config.run import RunConfig
from cluster.targets.kuberay import KubeRayTarget
from cluster.targets.kuberay_config import KubeRayConfig
from cluster.targets.kuberay_manifests import manifests
from cluster.targets.target import JobSpec
from data_pipeline.errors import FoldtrainError, UsageError
from tests.cluster.kuberay.fake_api_server import FakeApiServer

pytest.importorskip("kubernetes", reason="the Kubernetes client is not installed: foldtrain[kubernetes]")

JOB = JobSpec(
    "generator-3fa9c1",
    ("train-generator",),
    RunConfig(run="s3://bucket/run", inputs={"tokenizer": "s3://bucket/tokenizer", "images": "s3://bucket/images"}),
    "s3://bucket/run",
    ("python", "-P", "-m", "cluster.job_process", "s3://bucket/run", "generator-3fa9c1"),
)
HANDLE = "training/generator-3fa9c1"
KEY = ("training", "rayjobs", "generator-3fa9c1")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApiServer]:
    with_one = FakeApiServer()
    _write_kubeconfig(tmp_path / "kubeconfig", with_one.url)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    yield with_one
    with_one.close()


def _write_kubeconfig(path: Path, url: str) -> None:
    context = {"name": "test", "context": {"cluster": "c", "user": "u"}}
    clusters = [{"name": "c", "cluster": {"server": url}}]
    users = [{"name": "u", "user": {"token": "a-token"}}]
    path.write_text(
        yaml.safe_dump({"contexts": [context], "clusters": clusters, "users": users, "current-context": "test"})
    )


def config(**changes: Any) -> KubeRayConfig:
    minimal = {"image": "registry/foldtrain:1", "namespace": "training", "cpus_per_node": 16, "memory_per_node": 128}
    return KubeRayConfig.model_validate(minimal | changes)


def target(**changes: Any) -> KubeRayTarget:
    return KubeRayTarget("k8s", config(**changes))


def test_start_sends_exactly_what_render_shows(server: FakeApiServer) -> None:
    assert target().start(JOB) == HANDLE
    (rendered,) = target().render(JOB)
    assert server.objects == {KEY: yaml.safe_load(rendered.text)}
    assert server.asked[0].token == "Bearer a-token"
    assert server.asked[0].options["fieldValidation"] == "Strict"


def test_a_job_that_exists_is_not_started_a_second_time(server: FakeApiServer) -> None:
    target().start(JOB)
    with pytest.raises(FoldtrainError, match="already exists"):
        target().start(JOB)


def test_a_standing_cluster_is_made_once_and_left_as_it_is(server: FakeApiServer) -> None:
    mine = target(cluster="shared")
    mine.start(JOB)
    standing = server.objects["training", "rayclusters", "shared"]
    standing["spec"]["suspend"] = False
    server.objects.pop(KEY)
    mine.check(JOB)
    mine.start(JOB)
    assert server.objects["training", "rayclusters", "shared"] is standing
    assert KEY in server.objects


def test_check_has_the_server_judge_the_objects_and_makes_none(server: FakeApiServer) -> None:
    sentences = target(cluster="shared", queue="research", nodes="1:4", secrets=["A"], secret="s").check(JOB)
    assert server.objects == {}
    assert [each.options["dryRun"] for each in server.asked] == ["All", "All"]
    assert "image registry/foldtrain:1" in sentences[0]
    assert any("ElasticJobsViaWorkloadSlices" in each for each in sentences)


def test_a_field_that_kubernetes_does_not_know_is_refused_before_the_start(server: FakeApiServer) -> None:
    with pytest.raises(UsageError, match=r"refuses to make rayjobs/generator-3fa9c1.*'keys' was unexpected"):
        target(tolerations=[{"keys": "gpu"}]).check(JOB)


def test_a_run_on_this_machine_is_refused_unless_pods_have_volumes(server: FakeApiServer, tmp_path: Path) -> None:
    run = f"{tmp_path}/run"
    job = JobSpec("a", (), JOB.config.model_copy(update={"run": run}), run, ("python",))
    with pytest.raises(UsageError, match="is on this machine, and pods have no disk of it"):
        target().check(job)
    assert server.asked == []
    mounted = {"volumes": [{"name": "runs", "emptyDir": {}}], "volume_mounts": [{"name": "runs", "mountPath": run}]}
    target(**mounted).check(job)


def test_credentials_that_are_here_and_not_there_are_named(
    server: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    said = target().check(JOB)
    assert any("AWS_SECRET_ACCESS_KEY" in sentence for sentence in said)
    assert not any("wJalrXUtnFEMI" in sentence for sentence in said)
    assert len(target(service_account="trainer").check(JOB)) == 1  # storage knows the pods by it


def test_a_relative_path_is_refused_since_a_pod_has_another_folder(server: FakeApiServer) -> None:
    job = JobSpec("a", (), JOB.config.model_copy(update={"run": "runs/mine"}), "runs/mine", ("python",))
    with pytest.raises(UsageError, match="runs/mine is a relative path"):
        target().check(job)
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [
        ({}, "pending", ""),
        ({"jobDeploymentStatus": "Initializing"}, "pending", "Initializing"),
        ({"jobDeploymentStatus": "Suspended"}, "pending", "queue research"),
        ({"jobDeploymentStatus": "Retrying", "failed": 1}, "pending", "1 attempt failed"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running", ""),
        ({"jobDeploymentStatus": "Running", "jobStatus": "FAILED"}, "running", ""),  # the operator may retry it
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "succeeded", ""),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped", ""),
        ({"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "exit code 1"}, "failed", "exit code 1"),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "no head"}, "failed", "no head"),
        ({"jobDeploymentStatus": "SomethingNew"}, "running", "SomethingNew"),
    ],
)
def test_states_in_the_operators_words(
    server: FakeApiServer, status: dict[str, Any], expected: str, words: str
) -> None:
    (made,) = manifests(JOB, config(queue="research"))
    server.objects[KEY] = made | {"status": status}
    state = target().state(HANDLE)
    assert state.status == expected
    assert words in state.message


def test_a_job_that_waits_says_for_what(server: FakeApiServer) -> None:
    conditions = [
        {"type": "HeadPodReady", "status": "False", "message": "0/3 nodes are available: insufficient gpu"},
        {"type": "RayClusterProvisioned", "status": "True", "message": "fine"},
    ]
    status = {"jobDeploymentStatus": "Initializing", "rayClusterStatus": {"conditions": conditions}}
    server.objects[KEY] = {"status": status}
    assert target().state(HANDLE).message == "Initializing: 0/3 nodes are available: insufficient gpu"


def test_times_are_those_of_the_job_itself(server: FakeApiServer) -> None:
    info = {"startTime": "1970-01-01T00:01:00Z", "endTime": "1970-01-01T00:02:00Z"}
    done = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "startTime": "1970-01-01T00:00:30Z"}
    server.objects[KEY] = {"status": done | {"rayJobInfo": info}}
    state = target().state(HANDLE)
    assert (state.started, state.ended) == (60.0, 120.0)
    server.objects[KEY]["status"] |= {"jobDeploymentStatus": "Running"}
    assert target().state(HANDLE).ended is None
    server.objects[KEY]["status"] |= {"rayJobInfo": {"startTime": "no time"}}
    assert target().state(HANDLE).started is None


def test_a_job_that_was_deleted_is_lost_and_cancelled_twice_without_an_error(server: FakeApiServer) -> None:
    target().start(JOB)
    target().cancel(HANDLE)
    assert server.objects == {}
    assert server.asked[-1].options["propagationPolicy"] == "Background"
    target().cancel(HANDLE)
    assert target().state(HANDLE).status == "lost"


@pytest.mark.parametrize(
    ("code", "message", "kind", "sentence"),
    [
        (403, 'User "u" cannot create', FoldtrainError, "does not let this user make rayjobs/generator-3fa9c1"),
        (404, "not found", UsageError, "no such namespace, or KubeRay is not installed"),
        (422, "spec is invalid", UsageError, "refuses to make .*: spec is invalid"),
        (500, "etcd\x1b[2J is away\nTraceback", FoldtrainError, "HTTP 500: etcd .2J is away$"),
    ],
)
def test_what_the_server_says_no_to_has_one_clear_error(
    server: FakeApiServer, code: int, message: str, kind: type[Exception], sentence: str
) -> None:
    server.refuse = (code, message)
    with pytest.raises(kind, match=sentence):
        target().start(JOB)


def test_a_server_that_is_away_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        _write_kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        with pytest.raises(FoldtrainError, match="the current Kubernetes cluster does not answer"):
            target().state(HANDLE)


def test_a_context_that_the_kubeconfig_does_not_have_is_named(server: FakeApiServer) -> None:
    with pytest.raises(UsageError, match=r"context other is not known.*KUBECONFIG"):
        target(context="other").start(JOB)


def test_without_a_kubeconfig_it_says_what_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="name a kubeconfig in KUBECONFIG"):
        target().start(JOB)
