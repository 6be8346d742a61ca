"""Jobs on Kubernetes, through KubeRay: objects are made, read and deleted; the operator does the rest."""

from __future__ import annotations

import datetime
import os
from typing import Any

from cluster.config.absolute_paths import require_reachable
from cluster.targets import kuberay_manifests
from cluster.targets.kuberay_api import ApiServer
from cluster.targets.kuberay_config import KubeRayConfig
from cluster.targets.own_variables import not_sent
from cluster.targets.target import JobSpec, Rendered, TargetState, TargetStatus
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.text.counted import counted

_PLURALS = {"RayJob": "rayjobs", "RayCluster": "rayclusters"}
_BY_DEPLOYMENT: dict[str, TargetStatus] = {
    "": "pending",
    "Initializing": "pending",
    "Waiting": "pending",
    "Suspending": "pending",
    "Suspended": "pending",
    "Retrying": "pending",
    "Running": "running",
    "Failed": "failed",
    "ValidationFailed": "failed",
}
_BY_JOB: dict[str, TargetStatus] = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}


class KubeRayTarget:
    """A namespace of a Kubernetes cluster.

    Args:
        name: of the target, as it was asked for.
        config: of it.
    """

    def __init__(self, name: str, config: KubeRayConfig) -> None:
        self.name, self._config = name, config

    def check(self, job: JobSpec) -> list[str]:
        """See Target: the API server judges the objects, and makes none."""
        require_reachable(job.config)
        if not (storage.is_remote(job.run) or self._config.volume_mounts):
            raise UsageError(
                f"run: {job.run} is on this machine, and pods have no disk of it: give a URI (s3://…), or volumes and "
                "volume_mounts of the target that have it at the same path"
            )
        server = ApiServer(self._config.context)
        for manifest in kuberay_manifests.manifests(job, self._config):
            server.create(
                _PLURALS[manifest["kind"]], manifest, try_only=True, may_exist=manifest["kind"] == "RayCluster"
            )
        return list(self._sentences(job))

    def _sentences(self, job: JobSpec) -> list[str]:
        config = self._config
        where = (
            f"RayCluster {config.cluster}, which stays"
            if config.cluster
            else "a cluster of its own, which ends with it"
        )
        found = [f"namespace {config.namespace}: the job runs on {where}; image {config.image}"]
        if config.secrets:
            found.append(f"{', '.join(config.secrets)}: from the Secret {config.secret}")
        if not (config.secrets or config.secret_environment or config.service_account):
            missing = [sentence for stage in job.stages for sentence in not_sent(stage, job.config, os.environ)]
            found += dict.fromkeys(missing)
        if config.queue:
            found.append(f"it waits in Kueue's queue {config.queue}")
            if config.fewest_nodes < config.most_nodes:
                found.append("its size changes: Kueue has to have ElasticJobsViaWorkloadSlices on")
        return found

    def render(self, job: JobSpec) -> list[Rendered]:
        """See Target."""
        made = kuberay_manifests.manifests(job, self._config)
        return [Rendered(f"{each['kind'].lower()}.yaml", kuberay_manifests.to_yaml(each)) for each in made]

    def start(self, job: JobSpec) -> str:
        """See Target. The handle is NAMESPACE/NAME of the RayJob."""
        server = ApiServer(self._config.context)
        name = ""
        for manifest in kuberay_manifests.manifests(job, self._config):
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            server.create(_PLURALS[kind], manifest, may_exist=kind == "RayCluster")
        return f"{self._config.namespace}/{name}"

    def state(self, handle: str) -> TargetState:
        """See Target."""
        found = ApiServer(self._config.context).read("rayjobs", *_parts(handle))
        if found is None:
            return TargetState("lost", f"there is no RayJob {handle}: it was deleted")
        return _state(found)

    def cancel(self, handle: str) -> None:
        """See Target: the RayJob is deleted, and its cluster with it; Ray gives the job `grace_seconds`."""
        ApiServer(self._config.context).delete("rayjobs", *_parts(handle))


def _parts(handle: str) -> tuple[str, str]:
    namespace, slash, name = handle.partition("/")
    if not slash:
        raise FoldtrainError(f"{handle} names no RayJob: give NAMESPACE/NAME")
    return namespace, name


def _state(ray_job: dict[str, Any]) -> TargetState:
    status = ray_job.get("status") or {}
    deployment, job_status = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    found = _BY_DEPLOYMENT.get(deployment, "running")
    if deployment == "Complete":
        found = _BY_JOB.get(job_status, "failed")
    info = status.get("rayJobInfo") or {}
    started = _seconds(info.get("startTime")) if found != "pending" else None
    ended = _seconds(info.get("endTime")) or _seconds(status.get("endTime"))
    return TargetState(found, _message(ray_job, status, deployment), started, ended if deployment in _ENDED else None)


_ENDED = {"Complete", "Failed", "ValidationFailed"}


def _message(ray_job: dict[str, Any], status: dict[str, Any], deployment: str) -> str:
    """In the operator's own words, why it waits or why it ended."""
    words = [deployment, status.get("reason") or "", status.get("message") or ""]
    if deployment == "Suspended" or (not deployment and (ray_job.get("spec") or {}).get("suspend")):
        queue = ((ray_job.get("metadata") or {}).get("labels") or {}).get(kuberay_manifests.QUEUE_LABEL)
        words.append(f"waits in Kueue's queue {queue}" if queue else "is suspended")
    if _BY_DEPLOYMENT.get(deployment) == "pending":
        conditions = (status.get("rayClusterStatus") or {}).get("conditions") or []
        words += [str(each.get("message") or "") for each in conditions if each.get("status") == "False"]
    if status.get("failed"):
        words.append(counted(status["failed"], "attempt") + " failed")
    return ": ".join(dict.fromkeys(word for word in words if word))


def _seconds(text: Any) -> float | None:
    """Unix time of what Kubernetes writes as a time."""
    try:
        return datetime.datetime.fromisoformat(str(text)).timestamp() if text else None
    except ValueError:
        return None
