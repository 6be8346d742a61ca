"""Where jobs run. A target is a small class behind one Protocol (target.py) and a short YAML (config.py).

1. `--target NAME`: configs/cluster/NAME.yaml of foldtrain, then ~/.config/foldtrain/cluster/NAME.yaml; or a file
2. its `kind` chooses a section and a class: those below, and what packages add as entry points of `foldtrain.targets`
3. local.py, ray.py, ...: check, render, start, state, cancel. A fifth one: docs/extending.md
"""

from __future__ import annotations

from cluster.targets.config import TargetKind, TargetSection
from cluster.targets.kuberay import KubeRayTarget
from cluster.targets.kuberay_config import KubeRayConfig
from cluster.targets.local import LocalConfig, LocalTarget
from cluster.targets.ray import RayConfig, RayTarget
from cluster.targets.slurm import SlurmTarget
from cluster.targets.slurm_config import SlurmConfig
from cluster.targets.target import JobSpec, Rendered, Target, TargetState

KINDS: dict[str, TargetKind] = {
    "local": TargetKind(LocalConfig, LocalTarget),
    "ray": TargetKind(RayConfig, RayTarget),
    "kuberay": TargetKind(KubeRayConfig, KubeRayTarget),
    "slurm": TargetKind(SlurmConfig, SlurmTarget),
}
"""By the `kind` of a target's config."""

__all__ = ["KINDS", "JobSpec", "Rendered", "Target", "TargetKind", "TargetSection", "TargetState"]
