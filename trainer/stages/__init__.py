"""The networks that are trained, one file each, chosen by the stage's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from trainer.job import TrainJob
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
