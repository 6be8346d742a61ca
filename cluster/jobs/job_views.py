"""Jobs as a table for the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.jobs.records import JobRecord
from cluster.terminal.output import duration
from data_pipeline.text.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

COLORS = {
    "pending": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "stopped": "magenta",
    "preempted": "yellow",
    "lost": "red",
}


def table(jobs: Sequence[JobRecord], now: float | None = None) -> Table:
    """The jobs, one a row; `now` is a unix time in seconds."""
    from rich.table import Table
    from rich.text import Text

    now = time.time() if now is None else now
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ID", "STAGES", "RUN", "TARGET", "STATUS", "STARTED", "DURATION"):
        grid.add_column(column, overflow="fold")
    for job in jobs:
        cells = [job.id, _stages(job), job.run, job.target, *_times(job, now)]
        plain = [Text(printable(cell)) for cell in cells]  # a run's name is not markup
        status = job.status_at(now) if not job.problem else "failed"
        shown = Text(status if not job.problem else "unreadable", COLORS[status])
        grid.add_row(*plain[:4], shown, *plain[4:])
    return grid


def _stages(job: JobRecord) -> str:
    """What it runs; of several the one that it is at, and which of them that is."""
    stages = job.stages
    if len(stages) < 2 or job.state is None or job.state.stage not in stages:
        return f"{stages[0]} … {stages[-1]}" if len(stages) > 1 else "".join(stages)
    return f"{job.state.stage} ({stages.index(job.state.stage) + 1} of {len(stages)})"


def _times(job: JobRecord, now: float) -> tuple[str, str]:
    if job.state is None:
        return "-", "-"
    ended = job.state.ended or (job.state.heartbeat if job.status_at(now) == "lost" else now)
    return moment(job.state.started), duration(ended - job.state.started)


def moment(seconds: float) -> str:
    """A unix time in this machine's zone."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "?"
