"""What a run has on record of its jobs. Any machine that reaches the run reads it; it outlives head, node and cluster.

<run>/jobs/<id>/
    job.json        by `submit`, before the job is started: its stages, its target with all of its config, when, by whom
    config.yaml     by `submit`: the resolved config of the run
    handle.json     by `submit`, once the target has taken the job: the scheduler's own id
    state.json      by the job itself: how it stands, a sign of life every 15 seconds, how it ended
    log/            by the job itself: its output (logs.py)
    control.json    by `stop` (control.py)

What comes from storage is checked: a record of an unknown form is an error that names the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from cluster.jobs import control
from cluster.jobs.control import Stop
from cluster.jobs.logs import LogReader
from cluster.jobs.places import JOBS, is_id, job_folder, remembered_run
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.text import json_records
from data_pipeline.text.printable import printable

JobStatus = Literal["pending", "running", "succeeded", "failed", "stopped", "preempted", "lost"]
"""`lost`: it runs, and gave no sign of life for long. `preempted`: its scheduler ended it, and may start it again."""
OVER: frozenset[JobStatus] = frozenset({"succeeded", "failed", "stopped"})
"""Statuses that a job never leaves."""

BEAT_SECONDS = 15.0
SILENT_SECONDS = 90.0
"""Without a sign of life for so long a job counts as lost."""
CONFIG = "config.yaml"
_JOB, _HANDLE, _STATE = "job.json", "handle.json", "state.json"
_MOST_BYTES = 2**20
_READERS = 8

Text = Annotated[str, StringConstraints(max_length=4_000)]
Line = Annotated[str, StringConstraints(max_length=1_000)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Submitted(_Record):
    """What was asked: job.json."""

    version: Literal[1] = 1
    id: Line
    stages: tuple[Line, ...] = Field(min_length=1, max_length=64)
    """Commands, in their order."""
    run: Text
    """URI of the run."""
    target: Line
    """Its name, as `--target` was given."""
    target_config: dict[str, Any]
    """All of the target's config."""
    submitted: float
    """Unix time in seconds."""
    who: Line
    """user@host."""


class Attempt(_Record):
    """One start of a job."""

    attempt: int = Field(1, ge=1, le=1_000_000)
    """Counted from 1."""
    status: Literal["running", "succeeded", "failed", "stopped", "preempted"]
    stage: Line = ""
    """The one that it is at, or ended in."""
    started: float
    """Unix times in seconds, by the clock of the node."""
    heartbeat: float = 0.0
    """Of the last sign of life."""
    ended: float | None = None
    exit_code: int | None = None
    told: Line = ""
    """What told it to end: a signal, `stop`; empty if nothing did."""
    message: Text = ""
    """Why it ended as it did, for people."""
    node: Line = ""
    """Host of its first process."""
    pid: int = 0


class State(Attempt):
    """How a job stands, by its own word: state.json."""

    version: Literal[1] = 1
    done: dict[Line, Line] = Field({}, max_length=64)
    """What became of each stage that is over in this attempt: done, finished (already), stopped, failed."""
    last_lines: tuple[Line, ...] = Field((), max_length=50)
    """Of its output."""
    earlier: tuple[Attempt, ...] = Field((), max_length=50)
    """Starts before this one, the last 50."""


@dataclass(frozen=True)
class JobRecord:
    """All that a run has on record of a job."""

    id: str
    run: str
    job: Submitted | None
    """None if it cannot be read: `problem` says why."""
    handle: str | None = None
    """The scheduler's id of it; None if the scheduler has not taken it."""
    state: State | None = None
    """None until it has begun."""
    stop: Stop | None = None
    """None if nobody asked it to end."""
    problem: str = ""

    @property
    def stages(self) -> tuple[str, ...]:
        """Commands of stages, in their order."""
        return self.job.stages if self.job else ()

    @property
    def target(self) -> str:
        """Name of its target."""
        return self.job.target if self.job else ""

    @property
    def submitted(self) -> float:
        """Unix time in seconds."""
        return self.job.submitted if self.job else 0.0

    @property
    def status(self) -> JobStatus:
        """Where it stands now, as far as the records tell. A stopped job that never began is `stopped`."""
        return self.status_at(time.time())

    def status_at(self, now: float) -> JobStatus:
        """The same at a unix time in seconds."""
        if self.state is None:
            return "stopped" if self.stop else "pending"
        if self.state.status == "running":
            return "lost" if now - self.state.heartbeat > SILENT_SECONDS else "running"
        if self.state.status == "preempted" and self.stop:
            return "stopped"
        return self.state.status

    @property
    def message(self) -> str:
        """Why it stands so, in a line; empty if there is nothing to say."""
        if self.problem:
            return self.problem
        if self.state is None or self.state.status == "running":
            return f"asked to stop by {self.stop.by}" if self.stop else ""
        return self.state.message.partition("\n")[0] or self.state.told


def list_jobs(run: str) -> list[JobRecord]:
    """The jobs of a run, the oldest first. One whose records cannot be read is among them, with a `problem`."""
    ids = [name for name in storage.list_names(storage.join(run, JOBS)) if is_id(name)]
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(lambda job_id: read_or_problem(run, job_id), ids))
    return sorted(found, key=lambda record: (record.submitted, record.id))


def read_job(run: str, job_id: str) -> JobRecord:
    """A job of a run.

    Raises:
        UsageError: if there is none of that id, or its record is damaged.
    """
    folder = job_folder(run, job_id)
    job = _read(folder, _JOB, Submitted)
    if job is None:
        raise UsageError(f"{run} has no job {job_id}; `foldtrain jobs {run}` lists them")
    handle = _read(folder, _HANDLE, _Handle)
    state, stop = _read(folder, _STATE, State), control.read_stop(folder)
    return JobRecord(job_id, run, job, handle.handle if handle else None, state, stop)


def refreshed(record: JobRecord) -> JobRecord:
    """A job with what may have changed since it was read."""
    folder = job_folder(record.run, record.id)
    handle = record.handle
    if handle is None and (found := _read(folder, _HANDLE, _Handle)):
        handle = found.handle
    return replace(record, handle=handle, state=_read(folder, _STATE, State), stop=control.read_stop(folder))


def newest_job(run: str) -> JobRecord:
    """The job of a run that was submitted last.

    Raises:
        UsageError: if it has none.
    """
    found = list_jobs(run)
    if not found:
        raise UsageError(f"{run} has no jobs: nothing was submitted there (foldtrain submit CONFIG --stage ...)")
    return found[-1]


def find_job(named: str, job_id: str | None = None) -> JobRecord:
    """The job that a user means: by its id, if it was submitted here; by its run, which has one; by both.

    Raises:
        UsageError: if there is none.
    """
    if job_id is not None:
        return read_job(named, job_id)
    run = remembered_run(named)
    if run is not None:
        return read_job(run, named)
    if is_id(named) and not storage.exists(named):
        raise UsageError(
            f"no job {named} was submitted on this machine: name its run, too (foldtrain jobs RUN; --job {named})"
        )
    return newest_job(storage.absolute(named))


def request_stop(run: str, job_id: str, now: bool = False) -> None:
    """Ask a job to end, through the run's folder: with a checkpoint first, or at once.

    Raises:
        UsageError: if there is no such job.
    """
    read_job(run, job_id)
    control.write_stop(job_folder(run, job_id), now=now)


def logs(
    run: str,
    job_id: str,
    *,
    follow: bool = False,
    is_over: Callable[[JobRecord], bool] = lambda record: record.status in OVER | {"preempted", "lost"},
    pause: float | None = None,
) -> Iterator[str]:
    """What a job printed, in pieces, fit for a terminal; with `follow`, also what it goes on to print until it is over.

    Args:
        run: URI of the run.
        job_id: of the job.
        follow: go on until it is over.
        is_over: whether nothing more is to come.
        pause: seconds between two looks; by default 0.5 on a disk and 5 at a URI.
    """
    reader, pause = LogReader(job_folder(run, job_id)), pause or (5.0 if storage.is_remote(run) else 0.5)
    record = read_job(run, job_id)
    while True:
        over = not follow or is_over(record)  # known before the log is read, so that its end is not missed
        while piece := reader.news():
            yield printable(piece.replace("\t", "    ").replace("\r\n", "\n").replace("\r", "\n"), lines=True)
        if over:
            return
        time.sleep(pause)
        record = refreshed(record)


# ------------------------------------------------------------------------------------------------------------- writing


def write_job(job: Submitted, config: str) -> None:
    """Put a job on record that is about to be started, with its resolved config."""
    folder = job_folder(job.run, job.id)
    storage.write_bytes(storage.join(folder, CONFIG), config.encode())
    storage.write_json(storage.join(folder, _JOB), job.model_dump(mode="json"))


def remove_job(run: str, job_id: str) -> None:
    """Take back the record of a job that no target has taken."""
    storage.remove_tree(job_folder(run, job_id))


def write_handle(run: str, job_id: str, handle: str) -> None:
    """Put on record what a scheduler calls a job that it has taken."""
    storage.write_json(storage.join(job_folder(run, job_id), _HANDLE), _Handle(handle=handle).model_dump())


def write_state(run: str, job_id: str, state: State) -> None:
    """Put on record how a job stands. Only the job itself does."""
    storage.write_json(storage.join(job_folder(run, job_id), _STATE), state.model_dump(mode="json"))


def read_state(run: str, job_id: str) -> State | None:
    """How a job stands by its own word; None if it has not begun."""
    return _read(job_folder(run, job_id), _STATE, State)


class _Handle(_Record):
    version: Literal[1] = 1
    handle: Text


AnyRecord = TypeVar("AnyRecord", bound=_Record)


def _read(folder: str, name: str, form: type[AnyRecord]) -> AnyRecord | None:
    uri = storage.join(folder, name)
    try:
        return form.model_validate(json_records.parse(storage.read_bytes(uri, _MOST_BYTES)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise UsageError(f"{uri} is no record of a job ({json_records.first_problem(error)}): delete it") from None
    except ValueError as error:
        raise UsageError(f"{uri} is not valid JSON ({error}): delete it") from error


def read_or_problem(run: str, job_id: str) -> JobRecord:
    """A job, or what keeps its record from being read."""
    try:
        return read_job(run, job_id)
    except (FoldtrainError, OSError) as error:
        return JobRecord(job_id, run, None, problem=str(error))
