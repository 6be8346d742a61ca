"""The objects of a job on Kubernetes, as plain data: a RayJob with its own cluster, or one for a standing RayCluster.

1. `object_name`: a job's id as a name that Kubernetes takes
2. `ray_cluster_spec`: pods of head and workers, from the target's config alone
3. `manifests`: the objects that `start` sends, in this order
4. `to_yaml`: as a file for `kubectl`, from which every reader of YAML gets the same text back

The operator hands a job to Ray's head over HTTP (`submissionMode: HTTPMode`). Its other ways follow the job's log, and
take the end of that stream for the end of the job (kuberay#2788, #4921). When the head is gone, a new one comes up, the
operator does not find the job there, and submits it again: it goes on from its last checkpoint (kuberay#2155). A job
that fails gets a new cluster, `retries` times.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from cluster.targets.kuberay_config import HeadSection, KubeRayConfig
from cluster.targets.target import JobSpec

Manifest = dict[str, Any]

API_VERSION = "ray.io/v1"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ELASTIC_ANNOTATION = "kueue.x-k8s.io/elastic-job"
CLUSTER_LABEL = "ray.io/cluster"
LONGEST_NAME = 47
"""Characters of a RayJob's name: the operator adds some for the cluster, its pods and services."""
_DIGEST = 8
_STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"
"""Seconds that Ray's head gives a job between its polite stop and its kill."""
_DRAIN_SECONDS = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""Seconds for which a worker's `ray start` is a node that leaves, once Kubernetes has told it to end."""


def object_name(job_id: str) -> str:
    """A job's id as a DNS label that begins with a letter; ids that differ have names that differ.

    Args:
        job_id: any text.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", job_id.lower()).strip("-")
    name = plain if plain[:1].isalpha() else f"job-{plain}".strip("-")
    if name == job_id and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{name[: LONGEST_NAME - _DIGEST - 1].rstrip('-')}-{digest}"


def manifests(job: JobSpec, config: KubeRayConfig) -> list[Manifest]:
    """What is sent for a job, in this order. A standing cluster that exists already is left as it is."""
    if config.cluster is None:
        return [_ray_job(job, config, {"rayClusterSpec": ray_cluster_spec(config), "backoffLimit": config.retries})]
    standing = _object("RayCluster", config.cluster, config, spec=ray_cluster_spec(config))
    if config.queue is not None:
        standing["spec"]["suspend"] = True
    return [standing, _ray_job(job, config, {"clusterSelector": {CLUSTER_LABEL: config.cluster}})]


def ray_cluster_spec(config: KubeRayConfig) -> Manifest:
    """Spec of a RayCluster: a head that trains nothing, and a group of like workers."""
    elastic = config.fewest_nodes < config.most_nodes
    spec: Manifest = {
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": config.authentication},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - in its pod
            "template": _pod_template(config, config.head),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": config.fewest_nodes,
                "minReplicas": config.fewest_nodes,
                "maxReplicas": config.most_nodes,
                "rayStartParams": {},
                "template": _pod_template(config, None),
            }
        ],
    }
    if config.token_secret:
        spec["authOptions"]["secretName"] = config.token_secret
    if elastic:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "version": config.autoscaler,
            "upscalingMode": "Default",
            "idleTimeoutSeconds": config.idle_seconds,
            "imagePullPolicy": config.image_pull_policy,
        }
        if config.non_root:
            spec["autoscalerOptions"]["securityContext"] = _unprivileged()
    return spec


def _ray_job(job: JobSpec, config: KubeRayConfig, where: Manifest) -> Manifest:
    name = object_name(job.id)
    spec = {
        "entrypoint": shlex.join(job.argv),
        "jobId": name,
        "submissionMode": "HTTPMode",
        "shutdownAfterJobFinishes": config.cluster is None,
    }
    if config.cluster is None:
        spec["ttlSecondsAfterFinished"] = config.kept_seconds
        if config.queue is not None:
            spec["suspend"] = True  # until Kueue admits it
    made = _object("RayJob", name, config, spec=spec | where)
    made["metadata"]["annotations"] |= {"foldtrain/job": _encodable(job.id), "foldtrain/run": _encodable(job.run)}
    if config.cluster is not None:
        made["metadata"]["labels"].pop(QUEUE_LABEL, None)  # its cluster has been admitted
    return made


def _object(kind: str, name: str, config: KubeRayConfig, spec: Manifest) -> Manifest:
    labels, annotations = _labels(config), dict(config.annotations)
    if config.queue is not None:
        labels[QUEUE_LABEL] = config.queue
        if config.fewest_nodes < config.most_nodes:
            annotations[ELASTIC_ANNOTATION] = "true"
    metadata = {"name": name, "namespace": config.namespace, "labels": labels, "annotations": annotations}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def _labels(config: KubeRayConfig) -> dict[str, str]:
    return {"app.kubernetes.io/name": "foldtrain", "app.kubernetes.io/managed-by": "foldtrain"} | config.labels


def _pod_template(config: KubeRayConfig, head: HeadSection | None) -> Manifest:
    """Of the head's pod, or of a worker's."""
    where: KubeRayConfig | HeadSection = head or config
    elastic = config.fewest_nodes < config.most_nodes
    spec: Manifest = {
        "restartPolicy": "Never",  # the operator replaces pods whole
        "terminationGracePeriodSeconds": int(config.grace_seconds) + 10,
        "containers": [_container(config, head)],
        "volumes": list(config.volumes),
        "imagePullSecrets": [{"name": name} for name in config.image_pull_secrets],
        "nodeSelector": dict(where.node_selector),
        "tolerations": list(where.tolerations),
        "affinity": where.affinity,
        "serviceAccountName": config.service_account,
        "priorityClassName": config.priority_class,
    }
    if config.service_account is None and not (head and elastic):
        spec["automountServiceAccountToken"] = False  # only the autoscaler asks the API server for anything
    if config.non_root:
        spec["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    metadata = {"labels": _labels(config), "annotations": dict(config.annotations)}
    return {"metadata": metadata, "spec": {key: value for key, value in spec.items() if value not in (None, [], {})}}


def _container(config: KubeRayConfig, head: HeadSection | None) -> Manifest:
    container: Manifest = {
        "name": "ray-head" if head else "ray-worker",
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "env": _environment(config, head),
        "resources": _resources(config, head),
    }
    if head:
        ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
        container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
        stop = [config.python, "-P", "-m", "cluster.targets.kuberay_stop", str(int(config.grace_seconds))]
        container["lifecycle"] = {"preStop": {"exec": {"command": stop}}}
    if config.secret_environment:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in config.secret_environment]
    if config.volume_mounts:
        container["volumeMounts"] = list(config.volume_mounts)
    if config.non_root:
        container["securityContext"] = _unprivileged()
    return container


def _environment(config: KubeRayConfig, head: HeadSection | None) -> list[Manifest]:
    grace = {_STOP_SECONDS if head else _DRAIN_SECONDS: str(int(config.grace_seconds))}
    plain = {"RAY_USAGE_STATS_ENABLED": "0"} | grace | config.environment
    variables: list[Manifest] = [{"name": name, "value": escaped(value)} for name, value in plain.items()]
    keys = {name: {"name": config.secret, "key": name} for name in config.secrets}
    return variables + [{"name": name, "valueFrom": {"secretKeyRef": key}} for name, key in keys.items()]


def escaped(value: str) -> str:
    """A variable's value as Kubernetes has to be given it, which puts others in for $(NAME), and $ for $$."""
    return value.replace("$", "$$")


def _resources(config: KubeRayConfig, head: HeadSection | None) -> Manifest:
    """Asked for and allowed: the same, so that a pod is the last to be evicted, and Ray knows what it has."""
    assert config.cpus_per_node is not None
    assert config.memory_per_node is not None
    cpus, memory = (head.cpus, head.memory) if head else (config.cpus_per_node, config.memory_per_node)
    gpus = head.gpus if head else config.gpus_per_node
    amounts = {"cpu": str(cpus), "memory": f"{round(memory * 1000)}M"} | (
        {config.gpu_resource: str(gpus)} if gpus else {}
    )
    return {"limits": amounts, "requests": dict(amounts)}


def _unprivileged() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class _Dumper(yaml.SafeDumper):
    """Quotes text unless it is a plain word: readers differ in what else they take for a number, a date or a truth."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - each object is written out
        """See yaml."""
        return True


_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_NO_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = _WORD.fullmatch(text) and text.lower() not in _NO_TEXT
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _write_text)


def to_yaml(manifest: Mapping[str, Any]) -> str:
    """One object as a YAML document, in ASCII; several make a file one after the other."""
    return yaml.dump(
        dict(manifest), Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=2**20, explicit_start=True
    )
