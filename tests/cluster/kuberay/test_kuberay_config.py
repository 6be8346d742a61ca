"""What a target of kind kuberay refuses, before anything is sent."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.targets.kuberay_config import KubeRayConfig

MINIMAL = {"image": "registry.example/foldtrain:0.1.0", "cpus_per_node": 16, "memory_per_node": 128}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cpus_per_node": None}, "set cpus_per_node and memory_per_node"),
        ({"secrets": ["AWS_SECRET_ACCESS_KEY"]}, "secret not the Secret"),
        ({"secrets": ["A"], "secret": "s", "environment": {"A": "1"}}, "A: named in secrets, and given a value"),
        ({"environment": {"RAY_AUTH_TOKEN": "abc"}}, "RAY_AUTH_TOKEN is set by KubeRay"),
        ({"authentication": "disabled", "token_secret": "t"}, "authentication is disabled"),
        ({"image": "a\nb"}, "image"),
        ({"image": "--privileged"}, "image"),
        ({"namespace": "Team A"}, "namespace"),
        ({"cluster": "3d"}, "cluster"),
        ({"queue": "a/b"}, "queue"),
        ({"labels": {"team": "a b"}}, "labels"),
        ({"node_selector": {"-": "a"}}, "node_selector"),
        ({"tolerations": [{"until": datetime.date(2026, 1, 1)}]}, "is a date"),
        ({"volumes": [{"name": "\ud800"}]}, "half of a character"),
        ({"tolerationss": []}, "tolerationss"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        KubeRayConfig.model_validate(MINIMAL | changes)
    assert sentence in str(caught.value)


def test_an_image_may_be_named_by_its_digest() -> None:
    image = f"registry.example:5000/team/foldtrain@sha256:{'0' * 64}"
    assert KubeRayConfig.model_validate(MINIMAL | {"image": image}).image == image
