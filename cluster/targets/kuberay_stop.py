"""What a head's pod does before it is ended: it tells the job in it, and waits until that has left.

Kubernetes runs it as the `preStop` hook: `python -P -m cluster.targets.kuberay_stop SECONDS`. Ray's head is told only
afterwards, so that the job can save a checkpoint with all of its workers.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

import psutil

JOB_MODULE = "cluster.job_process"
"""What a job's own process runs with `python -m`."""


def stop_jobs(seconds: float) -> int:
    """Send SIGTERM to the first process of each of this user's jobs, and wait until they have ended.

    Their other processes are told by it: a second signal to one of them would end it at once.

    Args:
        seconds: most that are waited.

    Returns:
        How many have not ended.
    """
    found = {process.pid: process for process in psutil.process_iter() if _is_job(process)}
    first = [process for process in found.values() if _parent(process) not in found]
    for process in first:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(first, timeout=seconds)
    return len(alive)


def _parent(process: psutil.Process) -> int | None:
    try:
        return int(process.ppid())
    except psutil.Error:
        return None


def _is_job(process: psutil.Process) -> bool:
    """Whether a process is a job's own, rather than a shell that started it."""
    try:
        command: Sequence[str] = process.cmdline()
        mine = process.uids().real == os.getuid()
    except psutil.Error:
        return False
    return mine and any(command[at : at + 2] == ["-m", JOB_MODULE] for at in range(len(command)))


def main(arguments: Sequence[str]) -> int:
    """Run the hook."""
    left = stop_jobs(float(arguments[0]))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
