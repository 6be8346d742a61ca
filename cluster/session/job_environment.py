"""Variables of the submitting shell that a job on this machine gets, credentials among them, through a file.

They never go through Ray's runtime_env or metadata, which Ray writes into logs and shows in its dashboard. The file has
mode 0600 in a folder of mode 0700. The job's own process and each of its Ray workers read it when they start, so it
stays for as long as the job runs: the job removes it at its end, and the next `submit` what killed jobs left.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_pipeline.errors import FoldtrainError

PASSED_ON = (
    *("AWS_", "AZURE_", "GOOGLE_", "GCLOUD_", "FSSPEC_", "HF_", "HUGGING_FACE_", "HUGGINGFACE_", "WANDB_"),
    *("FOLDTRAIN_STORAGE_", "FOLDTRAIN_LEASE_", "OMP_NUM_THREADS"),
)
"""How the names of variables begin that a job on this machine gets."""
FILE_VARIABLE = "FOLDTRAIN_JOB_ENVIRONMENT"
"""Names the file to a job and its workers."""
SETUP_HOOK = "cluster.session.job_environment.take_over"
"""What Ray calls at the start of each worker of a job."""


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a job gets."""
    return {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}


def hand_over(folder: Path, job_id: str, environment: Mapping[str, str]) -> Path:
    """Write a job's variables into a file that only this user can read. Returns its path."""
    folder.mkdir(mode=0o700, exist_ok=True)
    path = file_of(folder, job_id)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dict(environment), file)
    return path


def file_of(folder: Path, job_id: str) -> Path:
    """Where the variables of a job are."""
    return folder / f"{job_id}.json"


def left(folder: Path) -> dict[str, float]:
    """The jobs whose variables are there, and the unix time in seconds at which each was written."""
    found = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            found[path.stem] = path.stat().st_mtime
    return found


def take_over() -> None:
    """Add the variables that were handed over to this process's own; nothing if there is no file.

    Raises:
        FoldtrainError: if the file is not this user's alone.
    """
    path = os.environ.get(FILE_VARIABLE)
    if not path:
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:  # the job has ended
        return
    with os.fdopen(descriptor) as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise FoldtrainError(
                f"{path} is not this user's alone (mode {stat.S_IMODE(status.st_mode):04o}): submit again"
            )
        os.environ.update(json.load(file))


def remove() -> None:
    """Remove the file of this process's job."""
    path = os.environ.get(FILE_VARIABLE)
    if path:
        Path(path).unlink(missing_ok=True)


def remove_left(folder: Path, ended: Iterable[str]) -> None:
    """Remove what jobs left that were killed. Those of jobs that are being submitted now are not known yet, and stay.

    Args:
        folder: of the files.
        ended: ids of jobs.
    """
    for job_id in ended:
        (folder / f"{job_id}.json").unlink(missing_ok=True)
