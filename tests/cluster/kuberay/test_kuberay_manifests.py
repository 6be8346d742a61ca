"""What is sent to Kubernetes, judged by KubeRay's CRDs, by Kubernetes' Pod and by Ray's autoscaler."""

from __future__ import annotations

import copy
import re
import shlex
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.config.run import RunConfig
from cluster.targets.kuberay import KubeRayTarget
from cluster.targets.kuberay_config import KubeRayConfig
from cluster.targets.kuberay_manifests import manifests, object_name, to_yaml
from cluster.targets.target import JobSpec
from tests.cluster.kuberay.expansion import expanded
from tests.cluster.kuberay.schemas import faults, pod_faults

MINIMAL = {"image": "registry.example/foldtrain:0.1.0", "cpus_per_node": 16, "memory_per_node": 128}
SECRET_VALUE = "wJalrXUtnFEMI"
FULL = MINIMAL | {
    "namespace": "training",
    "nodes": "2:8",
    "gpus_per_node": 8,
    "environment": {"NCCL_DEBUG": "WARN"},
    "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    "secret": "storage",
    "secret_environment": ["tracking"],
    "image_pull_secrets": ["registry"],
    "service_account": "trainer",
    "priority_class": "batch",
    "queue": "research",
    "token_secret": "ray-token",
    "node_selector": {"cloud.example/gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
            }
        }
    },
    "head": {"cpus": 4, "memory": 16, "node_selector": {"pool": "lasting"}},
    "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
    "volume_mounts": [{"name": "cache", "mountPath": "/cache"}],
    "labels": {"team": "images"},
    "annotations": {"note": "any text: <&>"},
    "grace_seconds": 300,
}
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
"""Any text: control characters, quotes, markup and other alphabets among it."""
HOSTILE = "s3://b/$(HOME)`id`;rm -rf /'\"\n---\nkind: Pod\x1b[2J<script>$$ ${HOME} \\ \u2028 \U0001f600"
NUMBERS_AND_TRUTHS = ["1e3", "0o14", "1_000", "0x1f", ".inf", "no", "On", "y", "null", "~", "1:30", "2026-01-01", "="]


def job(job_id: str = "generator-3fa9c1", run: str = "s3://bucket/run") -> JobSpec:
    argv = ("python", "-P", "-m", "cluster.job_process", run, job_id)
    return JobSpec(job_id, ("train-generator",), RunConfig.model_construct(run=run), run, argv)


def config(**changes: Any) -> KubeRayConfig:
    return KubeRayConfig.model_validate(MINIMAL | changes)


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {name: group["template"] for name, group in groups.items()} | {"head": spec["headGroupSpec"]["template"]}


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [template["spec"]["containers"][0] for template in pods(manifest).values()]


VARIANTS = [
    pytest.param(MINIMAL, id="minimal"),
    pytest.param(FULL, id="everything"),
    pytest.param(FULL | {"cluster": "standing"}, id="standing-cluster"),
    pytest.param(MINIMAL | {"cluster": "standing", "authentication": "disabled"}, id="standing-without-token"),
    pytest.param(FULL | {"non_root": False, "nodes": 1, "autoscaler": "v1"}, id="fixed-size-as-root"),
    pytest.param(FULL | {"autoscaler": "v1", "queue": None}, id="older-autoscaler"),
]


@pytest.mark.parametrize("settings_", VARIANTS)
def test_manifests_pass_the_crds_of_kuberay_and_the_schema_of_a_pod(settings_: dict[str, Any]) -> None:
    rendered = KubeRayTarget("k8s", KubeRayConfig.model_validate(settings_)).render(job())
    documents = [yaml.safe_load(each.text) for each in rendered]
    assert documents == manifests(job(), KubeRayConfig.model_validate(settings_))
    assert [fault for document in documents for fault in faults(document)] == []
    assert [fault for template in pods(documents[0]).values() for fault in pod_faults(template)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entrypont", "x"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", "two"),
        ("spec.rayClusterSpec.authOptions.mode", "password"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.tolerations", [{"keys": "gpu"}]),
    ],
)
def test_the_crd_would_find_what_is_wrong(path: str, value: Any) -> None:
    (document,) = manifests(job(), KubeRayConfig.model_validate(FULL))
    at, *keys = copy.deepcopy(document), *path.split(".")
    whole = at
    for key in keys[:-1]:
        at = at[int(key) if key.isdigit() else key]
    at[keys[-1]] = value
    assert faults(document) == []
    assert len(faults(whole)) == 1


def test_the_schema_of_a_pod_would_find_what_is_wrong() -> None:
    (document,) = manifests(job(), config(tolerations=[{"keys": "gpu"}]))
    assert len(pod_faults(pods(document)["workers"])) == 1


def test_rays_autoscaler_reads_as_many_nodes_cpus_gpus_and_bytes_as_were_asked_for() -> None:
    parser = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    (cluster, _) = manifests(job(), KubeRayConfig.model_validate(FULL | {"cluster": "standing"}))
    read = parser._derive_autoscaling_config_from_ray_cr(cluster)
    workers, head = (read["available_node_types"][name] for name in ("workers", "headgroup"))
    assert (workers["min_workers"], workers["max_workers"]) == (2, 8)
    assert workers["resources"] == {"CPU": 16, "GPU": 8, "memory": 128 * 10**9}
    assert head["resources"] == {"CPU": 0, "memory": 16 * 10**9}
    assert read["idle_timeout_minutes"] == 5


def test_the_autoscaler_is_on_for_a_range_of_nodes_alone() -> None:
    ranged, fixed = (manifests(job(), config(nodes=nodes))[0]["spec"]["rayClusterSpec"] for nodes in ("1:4", 4))
    assert ranged["enableInTreeAutoscaling"]
    assert ranged["workerGroupSpecs"][0]["replicas"] == 1
    assert "enableInTreeAutoscaling" not in fixed
    group = fixed["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (4, 4, 4)


def test_secrets_are_named_and_never_contained(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FULL["secrets"]:
        monkeypatch.setenv(name, SECRET_VALUE)
    (rendered,) = KubeRayTarget("k8s", KubeRayConfig.model_validate(FULL)).render(job())
    assert SECRET_VALUE not in rendered.text
    for container in containers(yaml.safe_load(rendered.text)):
        found = {each["name"]: each["valueFrom"] for each in container["env"] if "valueFrom" in each}
        assert found == {name: {"secretKeyRef": {"name": "storage", "key": name}} for name in FULL["secrets"]}
        assert container["envFrom"] == [{"secretRef": {"name": "tracking"}}]


def test_ray_asks_for_a_token_unless_that_is_switched_off() -> None:
    modes = [
        manifests(job(), config(**more))[0]["spec"]["rayClusterSpec"]["authOptions"]
        for more in ({}, {"token_secret": "mine"}, {"authentication": "disabled"})
    ]
    assert modes == [{"mode": "token"}, {"mode": "token", "secretName": "mine"}, {"mode": "disabled"}]


def test_kueue_admits_what_begins_suspended() -> None:
    (own,) = manifests(job(), config(queue="research"))
    assert own["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert own["spec"]["suspend"]
    assert own["spec"]["shutdownAfterJobFinishes"]  # KubeRay and Kueue both demand it
    assert "kueue.x-k8s.io/elastic-job" not in own["metadata"]["annotations"]
    (ranged,) = manifests(job(), config(queue="research", nodes="1:2"))
    assert ranged["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    assert "suspend" not in manifests(job(), config())[0]["spec"]


def test_a_standing_cluster_waits_in_the_queue_and_its_jobs_do_not() -> None:
    standing, sent = manifests(job(), config(queue="research", cluster="shared"))
    assert (standing["kind"], standing["spec"]["suspend"]) == ("RayCluster", True)
    assert sent["spec"]["clusterSelector"] == {"ray.io/cluster": standing["metadata"]["name"]}
    assert "kueue.x-k8s.io/queue-name" not in sent["metadata"]["labels"]
    assert not {"suspend", "backoffLimit", "rayClusterSpec"} & sent["spec"].keys()  # the operator refuses each of them
    assert not sent["spec"]["shutdownAfterJobFinishes"]


def test_what_places_pods_is_passed_through_and_the_head_has_its_own() -> None:
    (document,) = manifests(job(), KubeRayConfig.model_validate(FULL))
    head, workers = (pods(document)[name]["spec"] for name in ("head", "workers"))
    assert workers["nodeSelector"] == FULL["node_selector"]
    assert workers["tolerations"] == FULL["tolerations"]
    assert workers["affinity"] == FULL["affinity"]
    assert head["nodeSelector"] == {"pool": "lasting"}
    assert not {"tolerations", "affinity"} & head.keys()
    for spec in (head, workers):
        assert spec["volumes"] == FULL["volumes"]
        assert spec["containers"][0]["volumeMounts"] == FULL["volume_mounts"]
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("trainer", "batch")


def test_a_lost_stream_of_logs_ends_nothing_and_a_lost_head_is_started_again() -> None:
    """KubeRay submits by HTTP and follows no log; it submits again where a new head knows no such job."""
    spec = manifests(job(), config(retries=5))[0]["spec"]
    assert spec["submissionMode"] == "HTTPMode"
    assert spec["jobId"] == "generator-3fa9c1"
    assert spec["backoffLimit"] == 5
    assert not {"submitterPodTemplate", "submitterConfig", "activeDeadlineSeconds"} & spec.keys()
    restarts = {template["spec"]["restartPolicy"] for template in pods(manifests(job(), config())[0]).values()}
    assert restarts == {"Never"}


def test_pods_have_the_grace_that_the_config_states() -> None:
    (document,) = manifests(job(), config(grace_seconds=300))
    head, workers = (pods(document)[name]["spec"] for name in ("head", "workers"))
    assert (head["terminationGracePeriodSeconds"], workers["terminationGracePeriodSeconds"]) == (310, 310)
    stop = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert stop == ["python", "-P", "-m", "cluster.targets.kuberay_stop", "300"]
    named = {each["name"]: each["value"] for each in workers["containers"][0]["env"]}
    assert named["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "300"
    constants = pytest.importorskip("ray._private.ray_constants")
    assert hasattr(constants, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")


def test_pods_ask_for_what_the_restricted_pod_security_standard_asks_for() -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards"""
    (document,) = manifests(job(), config(nodes="1:2"))
    for template in pods(document).values():
        assert template["spec"]["securityContext"] == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    wanted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    autoscaler = document["spec"]["rayClusterSpec"]["autoscalerOptions"]
    assert [each["securityContext"] for each in (*containers(document), autoscaler)] == [wanted] * 3
    assert pods(document)["workers"]["spec"]["automountServiceAccountToken"] is False
    assert "automountServiceAccountToken" not in pods(document)["head"]["spec"]  # the autoscaler needs it


@given(st.text(max_size=80), st.text(max_size=80))
@example("../../ETC", "3")
@example("generator-3fa9c1", "Generator-3FA9C1")
@example("a" * 47, "a" * 48)
@example("", "-")
def test_names_of_objects_are_dns_labels_and_differ_where_ids_do(one: str, other: str) -> None:
    names = [object_name(each) for each in (one, other)]
    for name in names:
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= 47  # MaxRayJobNameLength of KubeRay
    assert (names[0] == names[1]) == (one == other)


@pytest.mark.parametrize("name", ["generator-3fa9c1", "a1", "z", "a" * 47])
def test_an_id_that_is_a_name_already_is_kept(name: str) -> None:
    assert object_name(name) == name


def test_the_head_has_the_ports_of_ray_under_the_names_that_kuberay_looks_for() -> None:
    (document,) = manifests(job(), config())
    ports = pods(document)["head"]["spec"]["containers"][0]["ports"]
    assert {each["name"]: each["containerPort"] for each in ports} == {
        "gcs-server": 6379,
        "dashboard": 8265,
        "client": 10001,
    }


@settings(max_examples=25, deadline=None)
@given(WORDS, st.dictionaries(st.from_regex(r"X[A-Z_]{0,8}", fullmatch=True), WORDS.filter(lambda t: "\0" not in t)))
@example(HOSTILE, {"X": HOSTILE, "Y": "$(PATH)"})
def test_any_run_and_any_variable_survive_yaml_shell_and_kubernetes(run: str, variables: dict[str, str]) -> None:
    made = config(environment=variables)
    (rendered,) = KubeRayTarget("k8s", made).render(job(run=run))
    assert rendered.text.isascii()
    document = yaml.safe_load(rendered.text)
    assert shlex.split(document["spec"]["entrypoint"]) == ["python", "-P", "-m", "cluster.job_process", run, job().id]
    assert document["metadata"]["annotations"]["foldtrain/run"] == run
    for container in containers(document):
        values = {each["name"]: expanded(each["value"], {"PATH": "/bin", "HOME": "/root"}) for each in container["env"]}
        assert {name: values[name] for name in variables} == variables


@pytest.mark.parametrize("value", NUMBERS_AND_TRUTHS)
def test_text_that_some_reader_takes_for_something_else_is_quoted(value: str) -> None:
    text = to_yaml({"value": value})
    assert text == f'---\nvalue: "{value}"\n'


def test_plain_words_stay_readable() -> None:
    assert to_yaml({"kind": "RayJob", "apiVersion": "ray.io/v1"}) == "---\nkind: RayJob\napiVersion: ray.io/v1\n"
