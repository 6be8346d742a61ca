"""The networks that are trained, one file each, chosen by the stage's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from trainer.ending import Ending, EndRequest
    from trainer.job import TrainJob
    from trainer.loop import Loop
    from trainer.stages.stage import Stage


def build_stage(job: TrainJob, device: torch.device) -> Stage:
    """The stage that a job names."""
    # Each imports what it needs alone: the backbones of a tokenizer are seconds of every start.
    if job.stage == "generator":
        from trainer.stages.generator import GeneratorStage

        return GeneratorStage(job, device)
    if job.stage == "tokenizer":
        from trainer.stages.tokenizer import TokenizerStage

        return TokenizerStage(job, device)
    from trainer.stages.classifier import ClassifierStage

    return ClassifierStage(job, device)


def run_worker(
    job: TrainJob, device: torch.device, request: EndRequest | None = None, asked: float | None = None
) -> tuple[Ending, int]:
    """Train on this rank; torch.distributed is initialized by whoever started it.

    Args:
        job: what to train.
        device: of this rank (trainer.device).
        request: through which others ask for the end before the last step.
        asked: unix time at which the command was given that trains, seconds; now if None.

    Returns:
        How it ended, and after which step.
    """
    from contextlib import closing

    from data_pipeline import watchdog

    late = watchdog.Watchdog(job.reading.late_seconds, watchdog.print_late)
    with closing(late), late.waiting(f"{job.stage}: the start", watchdog.LONG):
        loop = _build_loop(job, device, request, asked)
    loop.run()
    return loop.ending, loop.step


def _build_loop(job: TrainJob, device: torch.device, request: EndRequest | None, asked: float | None) -> Loop:
    import time

    began = asked or time.time()  # starting workers and importing torch are a part of the start
    import torch

    from trainer.loop import Loop

    torch.manual_seed(job.seed)  # the same first weights on every rank
    return Loop(job, build_stage(job, device), device, began, request)
