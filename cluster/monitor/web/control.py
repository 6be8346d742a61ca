"""What the page may ask of a run, with --control: the same as the command line, through the run's own folder."""

from __future__ import annotations

from cluster.jobs.records import OVER, list_jobs, request_stop
from cluster.monitor.web.run_reading import RunReading
from data_pipeline.errors import UsageError
from data_pipeline.text.printable import printable

ACTIONS = ("stop",)


def control(reading: RunReading, action: str) -> str:
    """Ask a run for something. Returns what was asked, for people.

    Raises:
        UsageError: if nothing is at work in it that could hear.
    """
    assert action in ACTIONS
    return _stop(reading)


def _stop(reading: RunReading) -> str:
    """Ask the job that is at work to end with a checkpoint, as `foldtrain stop` does before it asks a scheduler."""
    jobs = [job for job in list_jobs(reading.uri) if job.status not in OVER]
    if not jobs:
        raise UsageError(
            f"{printable(reading.name)}: no job is at work here. What was started by hand is stopped where it runs, by "
            "Ctrl-C; it saves a checkpoint."
        )
    for job in jobs:
        request_stop(reading.uri, job.id)
    return f"asked {', '.join(job.id for job in jobs)} to stop: a checkpoint is saved first"
