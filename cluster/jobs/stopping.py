"""Stopping a job: through its run's folder, and only if that is not heard in time by its scheduler's kill."""

from __future__ import annotations

import time
from collections.abc import Callable

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from cluster.jobs import records
from cluster.jobs.records import OVER, JobRecord, JobStatus
from cluster.jobs.submitting import grace_of, target_of
from cluster.jobs.watching import asked
from cluster.targets.target import ENDED
from data_pipeline.errors import FoldtrainError

_HEARD_SECONDS = 15.0
"""A job looks for requests that often at most, with some time to put its last word on record."""
_AT_ONCE_SECONDS = 30.0
_KILLED_SECONDS = 60.0
_LOOK_SECONDS = 0.5


def stop(record: JobRecord, *, now: bool, tell: Callable[[str], object]) -> JobStatus:
    """Have a job end, and wait for it. Returns how it stands then.

    Args:
        record: of the job.
        now: without a checkpoint.
        tell: told what is waited for.

    Raises:
        FoldtrainError: if the scheduler does not end it either.
    """
    if record.status in OVER and record.state is not None:
        return record.status
    waits = record.state is None
    records.request_stop(record.run, record.id, now)
    if waits or record.status == "lost" or record.status == "preempted":
        return _cancel(record, "it is not at work")
    grace = _AT_ONCE_SECONDS if now else grace_of(record)
    tell(f"ends{' at once' if now else f' after a checkpoint, within {grace:g} s'}")
    ended = _wait(record, grace + _HEARD_SECONDS, lambda found: found.status in OVER | {"preempted", "lost"})
    if ended is not None and ended.status != "lost":
        return ended.status
    tell(f"has not ended within {grace:g} s: its scheduler ends it")
    return _cancel(record, "it did not hear")


def _cancel(record: JobRecord, why: str) -> JobStatus:
    """Have the scheduler end a job."""
    if record.handle is None:
        return records.read_job(record.run, record.id).status
    target = target_of(record)
    target.cancel(record.handle)
    ended = _wait(record, _KILLED_SECONDS, lambda found: _is_gone(found))
    if ended is None:
        raise FoldtrainError(
            f"{record.id}: {why}, and {target.name} has not ended it in {_KILLED_SECONDS:.0f} s ({record.handle}): "
            "look there; the request to stop stays in the run, and the job obeys it as soon as it is at work"
        )
    return "stopped" if ended.status in {"pending", "lost", "preempted", "running"} else ended.status


def _is_gone(record: JobRecord) -> bool:
    if record.state is not None and record.status in OVER:
        return True
    state = asked(record)
    return state is not None and state.status in ENDED


def _wait(record: JobRecord, seconds: float, is_done: Callable[[JobRecord], bool]) -> JobRecord | None:
    """The job once that is so; None if it is not after so many seconds."""
    waiting = Retrying(
        retry=retry_if_result(lambda found: not is_done(found)),
        stop=stop_after_delay(seconds),
        wait=wait_fixed(_LOOK_SECONDS),
        sleep=time.sleep,
    )
    try:
        return waiting(lambda: records.refreshed(record))
    except RetryError:
        return None
