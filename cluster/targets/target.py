"""What a target is: somewhere to start the process of a job. It knows nothing of stages, training or the run's folder.

Five verbs: check, render, start, state, cancel. A target starts `JobSpec.argv` on its first node, once a Ray cluster of
its nodes can be joined there (RAY_ADDRESS), or where none is needed. All else travels through the run's folder, which
both sides reach: config, record, logs and the request to stop (cluster/jobs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from cluster.config.run import RunConfig

TargetStatus = Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]

ENDED: frozenset[TargetStatus] = frozenset({"succeeded", "failed", "stopped", "lost"})
"""Statuses that a job never leaves."""


@dataclass(frozen=True)
class JobSpec:
    """A job that is to be started."""

    id: str
    """Its name: lower-case letters, digits and dashes, at most 48 characters."""
    stages: tuple[str, ...]
    """Commands of stages (trainer.registry), in their order."""
    config: RunConfig
    """Of the run. Its paths mean the same on every node as here."""
    run: str
    """URI of the run."""
    argv: tuple[str, ...]
    """What the first node runs. Neither config nor secrets are in it."""


@dataclass(frozen=True)
class Rendered:
    """A text that is sent to a scheduler."""

    name: str
    """What it is: a file's name, or the request that it is the body of."""
    text: str
    """All of it. Secrets are named, never contained."""


@dataclass(frozen=True)
class TargetState:
    """What a scheduler says of a job."""

    status: TargetStatus
    """`lost` if it knows no such job, or is gone itself."""
    message: str = ""
    """Its own words: why it waits, why it ended."""
    started: float | None = None
    """Unix time of the start, seconds; None while it waits, or where it does not tell."""
    ended: float | None = None
    """Unix time of the end, seconds; None until then, or where it does not tell."""


class Target(Protocol):
    """Somewhere to run jobs."""

    name: str
    """As `--target` was given."""

    def check(self, job: JobSpec) -> list[str]:
        """Make sure that a job can be started, without any effect. Returns sentences that the user is shown.

        Raises:
            UsageError: if the target cannot do what the job needs, or cannot reach what its config names.
            FoldtrainError: if the scheduler does not answer.
        """

    def render(self, job: JobSpec) -> list[Rendered]:
        """Exactly what `start` sends to the scheduler. A pure function of the job and the target's config."""

    def start(self, job: JobSpec) -> str:
        """Hand a job to the scheduler. Returns the scheduler's own id of it, its handle.

        Raises:
            FoldtrainError: if the scheduler does not take it.
        """

    def state(self, handle: str) -> TargetState:
        """What the scheduler says of a job.

        Raises:
            FoldtrainError: if it does not answer.
        """

    def cancel(self, handle: str) -> None:
        """The scheduler's own kill, which waits for nothing. A job that has ended stays as it is.

        Raises:
            FoldtrainError: if the scheduler does not answer.
        """
