"""What the page may ask of a run, with --control: the same as the command line, through the run's own folder."""

from __future__ import annotations

from cluster.monitor.web.run_reading import RunReading
from data_pipeline.errors import UsageError

ACTIONS = ("stop", "checkpoint")


def control(reading: RunReading, action: str) -> str:
    """Ask a run for something. Returns what was asked, for people.

    Raises:
        UsageError: if nothing is at work in it.
    """
    raise UsageError(f"{reading.name}: {action} is not there yet")
