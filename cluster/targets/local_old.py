"""Jobs on this machine: a Ray head of our own is started for the first one, and stays for the next."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cluster.config.absolute_paths import with_absolute_paths
from cluster.config.run import RunConfig
from cluster.session import job_environment, local_head
from cluster.targets.ray_old import RayTarget
from cluster.targets.target_old import ENDED, Job, Target
from data_pipeline.errors import UsageError


class LocalTarget:
    """This machine. Relative paths keep their meaning, and jobs run the interpreter that submitted them.

    A job gets credentials and the like from the shell that submits it (job_environment.PASSED_ON): the head is older.
    """

    name = "local"

    def __init__(self, address: str | None = None) -> None:
        """Start nothing yet.

        Raises:
            UsageError: if an address is given.
        """
        if address is not None:
            raise UsageError(f"--target local is this machine and takes no --address; use --target ray for {address}")

    def submit(self, stage: str, config: RunConfig) -> str:
        """See Target."""
        cpus = math.ceil(config.cluster.most_workers * config.cluster.cpus_per_worker)
        head = local_head.start(cpus)
        ray = self._ray(head)
        job_environment.remove_left(_files(head), [job.id for job in ray.jobs() if job.status in ENDED])
        return ray.start(stage, with_absolute_paths(config), target=self.name)

    def jobs(self) -> list[Job]:
        """See Target. Without a local cluster there are none."""
        head = local_head.running()
        return self._ray(head).jobs() if head else []

    def job(self, job_id: str) -> Job:
        """See Target."""
        return self._existing().job(job_id)

    def logs(self, job_id: str, write: Callable[[str], object], *, follow: bool) -> None:
        """See Target."""
        self._existing().logs(job_id, write, follow=follow)

    def stop(self, job_id: str) -> None:
        """See Target."""
        self._existing().stop(job_id)

    def _existing(self) -> RayTarget:
        head = local_head.running()
        if head is None:
            raise UsageError("no local cluster is running, so it has no jobs; `foldtrain submit` starts one")
        return self._ray(head)

    def _ray(self, head: local_head.LocalHead) -> RayTarget:
        def hand_over(job_id: str) -> Path:
            return job_environment.hand_over(_files(head), job_id, job_environment.passed_on(os.environ))

        return RayTarget(head.dashboard, python=sys.executable, headers=head.headers, hand_over=hand_over)


def _files(head: local_head.LocalHead) -> Path:
    """Folder of the files with the variables of jobs."""
    return Path(head.folder, "jobs")


def open_target(name: str | None, address: str | None) -> Target:
    """The target that was asked for: by its name, or by an address alone, or else this machine."""
    chosen = name or ("ray" if address else "local")
    targets: dict[str, Callable[[str | None], Target]] = {"local": LocalTarget, "ray": RayTarget}
    if chosen not in targets:
        raise UsageError(f"--target {chosen}: there is no such target; choose from {', '.join(targets)}")
    return targets[chosen](address)
