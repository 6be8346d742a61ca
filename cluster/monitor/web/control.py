"""What the page may ask of a run, with --control: the same as the command line, through the run's own folder."""

from __future__ import annotations

from cluster.jobs.records import OVER, list_jobs, request_stop
from cluster.monitor.web.run_reading import RunReading
from cluster.pool.scale import request_checkpoints
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text.printable import printable

ACTIONS = ("stop", "checkpoint")


def control(reading: RunReading, action: str) -> str:
    """Ask a run for something. Returns what was asked, for people.

    Raises:
        UsageError: if nothing is at work in it that could hear.
    """
    assert action in ACTIONS
    return _stop(reading) if action == "stop" else _checkpoint(reading)


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


def _checkpoint(reading: RunReading) -> str:
    """Ask the stages that train to save a checkpoint and to go on: their drivers read it within seconds."""
    stages = reading.state.get("stages", ())
    at_work = [stage["name"] for stage in stages if stage.get("trains") and stage["status"] in {"running", "stalled"}]
    if not at_work:
        raise UsageError(f"{printable(reading.name)}: nothing trains there now")
    return request_checkpoints([storage.join(reading.uri, folder) for folder in at_work])
