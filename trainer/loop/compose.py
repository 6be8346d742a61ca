"""Puts a loop together from its parts, each of which gets what it works with when it is made."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from trainer.checkpoints.retention import rule_of
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config import TrainerConfig
from trainer.engine.agreement import Agreement
from trainer.engine.blocks import compile_blocks, recompute_blocks
from trainer.engine.deepspeed_engine import DeepSpeedEngine, prepare_deepspeed
from trainer.engine.trainable import Trainables
from trainer.job import TrainJob
from trainer.loop.ending import EndRequest
from trainer.loop.journal import Journal
from trainer.loop.run_checkpoints import RunCheckpoints
from trainer.loop.training_loop import Loop
from trainer.planning.model_flops import model_flops
from trainer.records.meter import Meter
from trainer.rollback.rollbacks import Rollbacks
from trainer.stages.stage import Stage


def build_loop(
    job: TrainJob,
    stage: Stage,
    device: torch.device,
    began: float | None = None,
    request: EndRequest | None = None,
) -> Loop:
    """The loop of one stage on one rank; torch.distributed is initialized.

    Args:
        job: what to train.
        stage: its networks, its data and its losses.
        device: of this rank.
        began: unix time at which this start began, before the stage was built; now if None.
        request: through which others ask for the end before the last step.
    """
    prepare_deepspeed(device)
    config, agreement = job.section.trainer, Agreement()
    journal = Journal(job, agreement.rank, agreement.world, began)
    rollbacks = Rollbacks(job.folder, job.checkpoints, config.spikes, agreement)
    writer = CheckpointWriter(
        job.checkpoints,
        agreement,
        rule_of(config.keep_checkpoints, config.keep_every, config.keep_best),
        config.max_failed_checkpoints,
        journal.event,
        patience=config.checkpoint_wait_seconds,
        decisions=lambda: rollbacks.decisions,
        before_commit=journal.before_checkpoint,
    )
    flops = model_flops(job, device, count=agreement.rank == 0)
    meter = Meter(config, flops.per_step, flops.peak, stage.exported)
    engines = _engines(stage.trainables, config, device, _held(writer, meter))
    return Loop(
        job,
        stage,
        device,
        engines=engines,
        agreement=agreement,
        rollbacks=rollbacks,
        checkpoints=RunCheckpoints(job, stage, engines, rollbacks, agreement, writer, journal.event),
        meter=meter,
        journal=journal,
        flops=flops,
        request=request or EndRequest(),
    )


def _engines(
    trainables: Trainables, config: TrainerConfig, device: torch.device, before_update: Callable[[], None]
) -> dict[str, DeepSpeedEngine]:
    modules = [trainable.module for trainable in trainables.values()]
    networks = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
    if config.activation_checkpointing:
        recompute_blocks(networks)
    if config.compile:
        compile_blocks(networks)
    return {name: DeepSpeedEngine(trainable, config, device, before_update) for name, trainable in trainables.items()}


def _held(writer: CheckpointWriter, meter: Meter) -> Callable[[], None]:
    """What is called before an update: it waits for the copy of the checkpoint under way, and accounts for that."""

    def hold() -> None:
        began = time.perf_counter()
        writer.wait_for_copy()
        meter.block(time.perf_counter() - began)

    return hold
