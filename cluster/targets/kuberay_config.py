"""What can be set of a Kubernetes cluster with KubeRay.

    kind: kuberay
    namespace: training
    image: registry.example/foldtrain:0.1.0
    nodes: 2:8                        # pods of workers; with MIN:MAX Ray's autoscaler asks for them as it needs them
    cpus_per_node: 16
    memory_per_node: 128
    gpus_per_node: 8
    secrets: [AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY]
    secret: foldtrain                 # the Secret that has them
    queue: research                   # of Kueue

Tolerations, affinity and volumes are passed through as they are; the API server checks them when a job is submitted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from cluster.targets.config import TargetSection
from model.config import Section

DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""Of a namespace, and of what makes part of a host's name."""
DnsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""Of an object."""
ClusterName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,51}[a-z0-9])?$")]
"""Of a RayCluster: KubeRay makes names of pods and services of it."""
ImageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}$")]
"""Registry, repository, tag and digest."""
LabelKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
    ),
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")]

_MANAGED = ("RAY_AUTH_", "RAY_ADDRESS", "RAY_CLUSTER_", "RAY_JOB_CONFIG", "RAY_ENABLE_AUTOSCALER_V2", "KUBERAY_")
"""How the names of variables begin that KubeRay sets in its pods."""


def _check_plain(value: Any) -> Any:
    """What is passed through is made of what JSON has: a date or bytes, which YAML has too, would be neither."""
    if isinstance(value, dict | list):
        for each in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _check_plain(each)
    elif isinstance(value, str):
        _check_encodable(value)
    elif not isinstance(value, int | float | None):
        raise ValueError(  # noqa: TRY004 - pydantic names the key
            f"{value} is a {type(value).__name__}, which Kubernetes does not know: put it in quotes"
        )
    return value


def _check_encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!a} is no text: it holds half of a character") from None
    return text


Text = Annotated[str, AfterValidator(_check_encodable)]
PassedThrough = Annotated[dict[str, Any], AfterValidator(_check_plain)]
"""A part of a pod, as Kubernetes documents it."""


class HeadSection(Section):
    """The pod with Ray's head and the job's own process. It trains nothing: its node can be a cheap, lasting one."""

    cpus: int = Field(2, gt=0, le=4_096)
    """CPUs."""
    memory: float = Field(8, gt=0, le=1_000_000)
    """GB (10⁹ bytes)."""
    gpus: int = Field(0, ge=0, le=64)
    """GPUs for `sample` and `evaluate`, which compute in the job's own process."""
    node_selector: dict[LabelKey, LabelValue] = Field({}, max_length=64)
    """Labels that its node has to have."""
    tolerations: tuple[PassedThrough, ...] = ()
    """Taints that it may be placed on."""
    affinity: PassedThrough | None = None
    """Where it would rather be."""


class KubeRayConfig(TargetSection):
    """A Kubernetes cluster whose KubeRay operator starts Ray, a pod for each node."""

    kind: Literal["kuberay"] = "kuberay"
    """Which scheduler."""
    context: str | None = None
    """Of the kubeconfig (KUBECONFIG, ~/.kube/config); null for the current one, or for a pod's own service account."""
    namespace: DnsLabel = "default"
    """Of all objects."""
    image: ImageName
    """With foldtrain in it, as the project's Dockerfile makes it: the same version as here."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes ask the registry."""
    image_pull_secrets: tuple[DnsName, ...] = ()
    """Secrets with credentials of the registry."""
    service_account: DnsName | None = None
    """Of the pods, for storage that knows them by it. With MIN:MAX nodes it needs the rights of Ray's autoscaler, which
    KubeRay gives by itself to an account of its own if this is null."""
    secret: DnsName | None = None
    """The Secret that holds what `secrets` names, each under its own name."""
    secret_environment: tuple[DnsName, ...] = ()
    """Secrets all of whose keys become variables."""
    authentication: Literal["token", "disabled"] = "token"
    """Whether Ray lets in only who has its token. The operator makes one for each cluster."""
    token_secret: DnsName | None = None
    """The Secret whose `auth_token` is the token; null for one that the operator makes."""
    queue: LabelValue | None = None
    """Kueue's LocalQueue; null to start at once, as far as there are nodes."""
    priority_class: DnsName | None = None
    """Of the pods."""
    cluster: ClusterName | None = None
    """A standing RayCluster to which jobs are sent; it is made with the first of them and stays. Null gives each job a
    cluster of its own, which ends with it."""
    head: HeadSection = HeadSection()
    """The pod with Ray's head."""
    gpu_resource: LabelKey = "nvidia.com/gpu"
    """What a GPU is called here."""
    node_selector: dict[LabelKey, LabelValue] = Field({}, max_length=64)
    """Labels that the nodes of workers have to have."""
    tolerations: tuple[PassedThrough, ...] = ()
    """Taints that workers may be placed on."""
    affinity: PassedThrough | None = None
    """Where workers would rather be."""
    volumes: tuple[PassedThrough, ...] = ()
    """Volumes of all pods."""
    volume_mounts: tuple[PassedThrough, ...] = ()
    """Where they are mounted."""
    labels: dict[LabelKey, LabelValue] = Field({}, max_length=64)
    """Of all objects and pods."""
    annotations: dict[LabelKey, Text] = Field({}, max_length=64)
    """Of all objects and pods."""
    non_root: bool = True
    """Ask for what the Pod Security Standard `restricted` asks for. False for an image whose user is root."""
    autoscaler: Literal["v1", "v2"] = "v2"
    """Version of Ray's autoscaler, with MIN:MAX nodes."""
    idle_seconds: int = Field(300, ge=0, le=604_800)
    """After which the autoscaler gives back a node that nobody uses."""
    retries: int = Field(3, ge=0, le=1_000)
    """New clusters that a job gets after it failed. It goes on from its last checkpoint in each."""
    kept_seconds: int = Field(300, ge=0, le=31_536_000)
    """For which the pods of a job that has ended stay to be looked at."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cpus_per_node is None or self.memory_per_node is None:
            raise ValueError("a pod has what it asks for: set cpus_per_node and memory_per_node (GB)")
        if self.secrets and self.secret is None:
            raise ValueError(
                "secrets names variables, and secret not the Secret that holds them: "
                "kubectl create secret generic foldtrain --from-env-file=FILE, and secret: foldtrain"
            )
        both = sorted(set(self.secrets) & set(self.environment))
        if both:
            raise ValueError(f"{', '.join(both)}: named in secrets, and given a value in environment; leave one out")
        for name in (*self.environment, *self.secrets):
            if name.startswith(_MANAGED):
                raise ValueError(
                    f"{name} is set by KubeRay; leave it out (authentication, cluster and nodes decide it)"
                )
        if self.token_secret and self.authentication == "disabled":
            raise ValueError("token_secret names a token, and authentication is disabled: leave one out")
        return self
