"""What a target is, and what a job on it looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from cluster.config.run import RunConfig

Status = Literal["pending", "running", "succeeded", "failed", "stopped"]

ENDED: frozenset[Status] = frozenset({"succeeded", "failed", "stopped"})
"""Statuses that a job never leaves."""


@dataclass(frozen=True)
class Job:
    """A stage that was submitted to a target."""

    id: str
    """Its name on the target."""
    stage: str
    """What it runs."""
    run: str
    """URI of the run that it works on."""
    status: Status
    """Where it stands."""
    started: float | None
    """Unix time of its start, seconds; None while it waits."""
    ended: float | None
    """Unix time of its end, seconds; None until then."""
    message: str
    """What the target says of its status."""


class Target(Protocol):
    """Somewhere to run stages. Its records of jobs are the only ones; foldtrain keeps none beside them."""

    name: str

    def submit(self, stage: str, config: RunConfig) -> str:
        """Start a stage and return the job's id.

        Raises:
            UsageError: if the config holds what the target cannot reach.
        """

    def jobs(self) -> list[Job]:
        """The jobs that foldtrain submitted, the newest last."""

    def job(self, job_id: str) -> Job:
        """One of them.

        Raises:
            UsageError: if there is no such job.
        """

    def logs(self, job_id: str, write: Callable[[str], object], *, follow: bool) -> None:
        """Hand what a job printed to `write`, in pieces; with `follow`, also what it goes on to print until it ends."""

    def stop(self, job_id: str) -> None:
        """Ask a job to end. Returns at once; a job that has ended stays as it is."""
