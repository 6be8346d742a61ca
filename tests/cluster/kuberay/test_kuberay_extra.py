"""The Kubernetes client is an extra: what works without it, and what it says where it is needed."""

from __future__ import annotations

import sys

import pytest

from cluster.config.run import RunConfig
from cluster.targets.kuberay import KubeRayTarget
from cluster.targets.kuberay_config import KubeRayConfig
from cluster.targets.target import JobSpec
from data_pipeline.errors import UsageError

TARGET = KubeRayTarget("k8s", KubeRayConfig(image="foldtrain:1", cpus_per_node=1, memory_per_node=1))


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(UsageError, match=r"pip install 'foldtrain\[kubernetes\]'"):
        TARGET.state("default/a")


def test_without_the_client_manifests_can_be_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    job = JobSpec("a", (), RunConfig.model_construct(run="s3://b/r"), "s3://b/r", ("python",))
    assert [each.name for each in TARGET.render(job)] == ["rayjob.yaml"]
