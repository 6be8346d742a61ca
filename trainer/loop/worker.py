"""A training worker: a stage and its loop on one rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from trainer.job import TrainJob
    from trainer.loop.ending import Ending, EndRequest
    from trainer.loop.training_loop import Loop


def run_worker(
    job: TrainJob, device: torch.device, request: EndRequest | None = None, asked: float | None = None
) -> tuple[Ending, int]:
    """Train on this rank; torch.distributed is initialized by whoever started it.

    Args:
        job: what to train.
        device: of this rank (trainer.engine.device).
        request: through which others ask for the end before the last step.
        asked: unix time at which the command was given that trains, seconds; now if None.

    Returns:
        How it ended, and after which step.
    """
    from contextlib import closing

    from data_pipeline.storage import watchdog

    late = watchdog.Watchdog(job.reading.late_seconds, watchdog.print_late)
    with closing(late), late.waiting(f"{job.stage}: the start", watchdog.LONG):
        loop = _build_loop(job, device, request, asked)
    loop.run()
    return loop.ending, loop.step


def _build_loop(job: TrainJob, device: torch.device, request: EndRequest | None, asked: float | None) -> Loop:
    import time

    began = asked or time.time()  # starting workers and importing torch are a part of the start
    import torch

    from trainer.loop.compose import build_loop
    from trainer.stages import build_stage

    torch.manual_seed(job.seed)  # the same first weights on every rank
    return build_loop(job, build_stage(job, device), device, began, request)
