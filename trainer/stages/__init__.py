"""The networks that are trained, one file each. Which stages there are stands in trainer/registry.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from trainer.job import TrainJob
    from trainer.stages.stage import Stage


def build_stage(job: TrainJob, device: torch.device) -> Stage:
    """The stage that a job names, with the weights that it starts from.

    Its module alone is imported: a tokenizer's backbones are seconds of a start.

    Raises:
        UsageError: if there is no such stage, or the weights are of another network.
    """
    from importlib import import_module

    from trainer.registry import trained_in
    from trainer.stages.initial import load_initial

    module, _, name = trained_in(job.stage).trains.partition(":")
    stage: Stage = getattr(import_module(module), name)(job, device)
    load_initial(job, stage.trainables[stage.exported].module, stage.card())
    return stage
