"""Where the files of a job are: <run>/jobs/<id>/. And on the machine that submitted it, to which run an id belongs."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from cluster.session import local_head
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.storage.local_disk import disk_errors

JOBS = "jobs"
_ID = re.compile(r"[a-z][a-z-]{0,39}-[0-9a-f]{6}")
_MOST_REMEMBERED = 1000


def new_id(stages: Sequence[str]) -> str:
    """A name for a job: `generator-3fa9c1`; `run-3fa9c1` if it has several stages."""
    label = stages[0].removeprefix("train-") if len(stages) == 1 else "run"
    return f"{label}-{secrets.token_hex(3)}"


def is_id(text: str) -> bool:
    """Whether a text has the form of a job's id."""
    return _ID.fullmatch(text) is not None


def job_folder(run: str, job_id: str) -> str:
    """Folder of a job's files.

    Raises:
        UsageError: if that is no id of a job.
    """
    if not is_id(job_id):
        raise UsageError(f"{job_id[:80]!r} is no id of a job; `foldtrain jobs RUN` lists them")
    return storage.join(run, JOBS, job_id)


def remember(run: str, job_id: str) -> None:
    """Write down on this machine to which run a job belongs, so that its id alone names it here."""
    folder = _remembered()
    with disk_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / f"{job_id}.json").write_text(json.dumps({"run": run}))
        known = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in known[:-_MOST_REMEMBERED]:
            path.unlink(missing_ok=True)


def remembered_run(job_id: str) -> str | None:
    """The run of a job that was submitted here; None if it was not, or too long ago."""
    if not is_id(job_id):
        return None
    try:
        record = json.loads((_remembered() / f"{job_id}.json").read_text())
    except (OSError, ValueError):
        return None
    run = record.get("run") if isinstance(record, dict) else None
    return run if isinstance(run, str) and run else None


def remembered() -> dict[str, str]:
    """The jobs that were submitted here, the oldest first, with their runs."""
    paths = sorted(_remembered().glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name))
    found = {path.stem: remembered_run(path.stem) for path in paths}
    return {job_id: run for job_id, run in found.items() if run is not None}


def _remembered() -> Path:
    return local_head.home() / "submitted"
