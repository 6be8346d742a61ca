"""Stages as jobs: submit one, wait for its end, and list them. Where it runs is the target's business."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from cluster.config.errors import closest
from cluster.config.run import RunConfig
from cluster.targets.target_old import ENDED, Job, Target
from cluster.terminal.output import duration
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.text.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

_COLORS = {"pending": "yellow", "running": "cyan", "succeeded": "green", "failed": "red", "stopped": "magenta"}


def submit(target: Target, stage: str, config: RunConfig, stages: Sequence[str]) -> str:
    """Start a stage on a target and return the job's id.

    Raises:
        UsageError: if it is none of the `stages`, or the target cannot reach what the config names.
    """
    if stage not in stages:
        near = closest(stage, stages)
        hint = f"did you mean {near}?" if near else f"choose from {', '.join(stages)}"
        raise UsageError(f"--stage {stage}: there is no such stage; {hint}")
    return target.submit(stage, config)


def wait_until_ended(target: Target, job_id: str, seconds: float) -> Job:
    """The job once it has ended.

    Raises:
        FoldtrainError: if it has not after this many seconds.
    """
    waiting = Retrying(
        retry=retry_if_result(lambda job: job.status not in ENDED), stop=stop_after_delay(seconds), wait=wait_fixed(0.2)
    )
    try:
        return waiting(lambda: target.job(job_id))
    except RetryError as error:
        raise FoldtrainError(f"{job_id} has not ended after {seconds:.0f} seconds; look at its logs") from error


def table(jobs: Sequence[Job], now: float | None = None) -> Table:
    """The jobs, one a row; `now` is a unix time in seconds."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ID", "STAGE", "RUN", "STATUS", "STARTED", "DURATION"):
        grid.add_column(column, overflow="fold")
    for job in jobs:
        cells = [job.id, job.stage, job.run, *_times(job, time.time() if now is None else now)]
        plain = [Text(printable(cell)) for cell in cells]  # a run's name is not markup
        grid.add_row(*plain[:3], Text(job.status, _COLORS[job.status]), *plain[3:])
    return grid


def _times(job: Job, now: float) -> tuple[str, str]:
    if job.started is None:
        return "-", "-"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
    return started, duration((job.ended or now) - job.started)
