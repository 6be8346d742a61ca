"""Where a stage can run as a job. A target is a small class behind one Protocol; this is where one is chosen."""

from __future__ import annotations

from collections.abc import Callable

from cluster.targets.local import LocalTarget
from cluster.targets.ray import RayTarget
from cluster.targets.target import Job, Target
from data_pipeline.errors import UsageError

TARGETS: dict[str, Callable[[str | None], Target]] = {"local": LocalTarget, "ray": RayTarget}
"""By the name that `--target` takes; each is made from the `--address` that was given, if any."""


def open_target(name: str | None, address: str | None) -> Target:
    """The target that was asked for: by its name, or by an address alone, or else this machine.

    Raises:
        UsageError: if there is no such target, or it needs an address or cannot have one.
    """
    chosen = name or ("ray" if address else "local")
    if chosen not in TARGETS:
        raise UsageError(f"--target {chosen}: there is no such target; choose from {', '.join(TARGETS)}")
    return TARGETS[chosen](address)


__all__ = ["TARGETS", "Job", "Target", "open_target"]
