"""Jobs on this machine: a Ray head of our own is started for the first one, and stays for the next."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cluster.session import job_environment, local_head
from cluster.targets.config import TargetSection
from cluster.targets.ray import RayJobs, rendered, request
from cluster.targets.target import ENDED, JobSpec, Rendered, TargetState
from data_pipeline.errors import UsageError


class LocalConfig(TargetSection):
    """This machine."""

    same_machine: ClassVar[bool] = True

    kind: Literal["local"] = "local"
    nodes: Literal[1] = 1
    """This machine alone."""
    python: str = Field(default_factory=lambda: sys.executable, min_length=1, max_length=4_095)
    """The interpreter of jobs: by default the one that submits them."""


class LocalTarget:
    """This machine. Relative paths keep their meaning.

    A job gets credentials and the like from the shell that submits it (job_environment.PASSED_ON, and the `secrets` of
    the section): the head is older. They are in a file that only this user can read, of which Ray knows the path.

    Args:
        name: as `--target` was given.
        section: its config.
    """

    def __init__(self, name: str, section: LocalConfig) -> None:
        self.name, self._section = name, section

    def check(self, job: JobSpec) -> list[str]:
        """See Target."""
        if missing := [name for name in self._section.secrets if name not in os.environ]:
            raise UsageError(f"{', '.join(missing)}: named in `secrets` of the target and not set in this shell")
        head = local_head.running()
        if head is not None:
            local_head.require_cpus(head, self._cpus(job))
        return []

    def render(self, job: JobSpec) -> list[Rendered]:
        """See Target."""
        return [rendered(self._request(job))]

    def start(self, job: JobSpec) -> str:
        """See Target."""
        head = local_head.start(self._cpus(job))
        jobs = _jobs(head)
        _remove_left(head, jobs)
        environment = job_environment.passed_on(os.environ)
        environment |= {name: os.environ[name] for name in self._section.secrets if name in os.environ}
        file = job_environment.hand_over(_files(), job.id, environment)
        try:
            return jobs.submit(self._request(job))
        except BaseException:
            file.unlink(missing_ok=True)
            raise

    def state(self, handle: str) -> TargetState:
        """See Target."""
        head = local_head.running()
        if head is None:
            return TargetState("lost", "the local cluster has ended (`foldtrain shutdown`, or it was killed)")
        return _jobs(head).state(handle)

    def cancel(self, handle: str) -> None:
        """See Target. Without a local cluster there is nothing to cancel."""
        head = local_head.running()
        if head is not None:
            _jobs(head).cancel(handle)

    def _request(self, job: JobSpec) -> dict[str, Any]:
        file = job_environment.file_of(_files(), job.id)
        variables = {**self._section.environment, job_environment.FILE_VARIABLE: str(file)}
        return request(job, self.name, variables, job_environment.SETUP_HOOK)

    def _cpus(self, job: JobSpec) -> int:
        cluster = job.config.cluster
        return max(math.ceil(cluster.most_workers * cluster.cpus_per_worker), self._section.cpus_per_node or 1)


def _jobs(head: local_head.LocalHead) -> RayJobs:
    return RayJobs(head.dashboard, head.headers)


def _files() -> Path:
    """Folder of the files with the variables of jobs."""
    return local_head.home() / "variables"


def _remove_left(head: local_head.LocalHead, jobs: RayJobs) -> None:
    """Remove the variables that killed jobs left. A job that is being submitted is not known yet: its file stays."""
    for job_id, written in job_environment.left(_files()).items():
        if written < head.created or jobs.state(job_id).status in ENDED - {"lost"}:
            job_environment.file_of(_files(), job_id).unlink(missing_ok=True)
