"""The checkpoints of a run: what is in one, when one is due, and how a run goes on from one.

A checkpoint that could not be written is tried again at the next step; at the end of a run, until it is written or
`max_failed_checkpoints` in a row have failed, which the writer raises.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch.distributed as dist

from trainer.checkpoints import folder, restore
from trainer.checkpoints.agreement import Agreement
from trainer.checkpoints.reader import CheckpointReader
from trainer.checkpoints.retention import rule_of
from trainer.checkpoints.snapshot import pieces
from trainer.checkpoints.writer import CheckpointWriter, Report
from trainer.course import Course
from trainer.engine import Engine
from trainer.job import TrainJob
from trainer.stages.stage import Stage


@dataclass
class Progress:
    """How far a run is, equal on all ranks."""

    step: int = 0
    """Steps that were done or passed over."""
    resumed_at: int = 0
    """Step of the checkpoint that it went on from; 0 if from none."""
    skipped: int = 0
    """Optimizer steps that were not applied."""
    skipped_in_a_row: int = 0
    """Of these, the last ones."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """Of the last record since then."""


class RunCheckpoints:
    """Saves and restores the state of one stage on one rank.

    Args:
        job: what is trained.
        stage: the network and its own state.
        engine: that trains it; its updates are held while it is copied.
        course: of the run.
        agreement: of all ranks.
        report: is told of each checkpoint, as `CheckpointWriter` does.
    """

    def __init__(
        self, job: TrainJob, stage: Stage, engine: Engine, course: Course, agreement: Agreement, report: Report
    ) -> None:
        self._job, self._stage, self._engine, self._course = job, stage, engine, course
        config = self._config = job.section.trainer
        keep = rule_of(config.keep_checkpoints, config.keep_every, config.keep_best)
        self.writer = CheckpointWriter(job.checkpoints, agreement, keep, config.max_failed_checkpoints, report)
        self.writer.decisions = lambda: course.decisions
        self._saved_time = time.monotonic()

    def reserve(self) -> None:
        """Allocate the host memory for them."""
        self.writer.reserve(pieces(self._engine.module, self._engine.owned, {}))

    def resume(self) -> Progress:
        """Go on from the newest checkpoint that keeps to what was decided about spikes, if there is any (a collective).

        Raises:
            UsageError: if it was trained from something else.
            FoldtrainError: if a rollback was decided, and there is no checkpoint that keeps to it.
        """
        step = self._course.checkpoint()
        if step is None:
            self._course.load({})
            return Progress()
        reader = CheckpointReader(folder.step_folder(self._job.checkpoints, step))
        restore.check_origin(reader, self._origin())
        restore.load_checkpoint(reader, self._engine.module, self._engine.owned)
        self._stage.load_state(restore.load_stage_state(reader) if dist.get_rank() == 0 else {})
        state = reader.state
        self._course.load(state)
        if self._engine.loss_scale:
            self._engine.loss_scale.load_state(state["loss_scale"])
        self.writer.saved = step
        return Progress(self._course.next_step(step), step, state["skipped_steps"], state["skipped_in_a_row"])

    def is_due(self) -> bool:
        """Whether rank 0's clock asks for one."""
        minutes = self._config.checkpoint_minutes
        if minutes is None or dist.get_rank() > 0:
            return False
        return time.monotonic() - self._saved_time >= minutes * 60

    @property
    def failed(self) -> bool:
        """Whether the last one could not be written, and no other is under way; equal on all ranks."""
        return self.writer.failures > 0 and self.writer.under_way is None

    def has(self, step: int) -> bool:
        """Whether the state at a step is saved, or about to be; equal on all ranks."""
        return step in {self.writer.saved, self.writer.under_way}

    def save(self, progress: Progress) -> None:
        """Begin one (a collective)."""
        found = pieces(self._engine.module, self._engine.owned, self._stage.state())
        self.writer.save(progress.step, found, self._state(progress))
        self._saved_time = time.monotonic()

    def finish(self, progress: Progress) -> None:
        """Wait for the last one, with which the run ends or is continued (a collective).

        Raises:
            FoldtrainError: if it failed so often that the writer gives up.
        """
        self.writer.finish()
        while not self.has(progress.step):
            self.save(progress)
            self.writer.finish()

    def _origin(self) -> dict[str, Any]:
        """What the weights were made from, besides the settings."""
        return {"stage": self._job.stage, "seed": self._job.seed, "lineage": self._job.lineage}

    def _state(self, progress: Progress) -> dict[str, Any]:
        """All that is saved besides tensors. Random numbers need none: they are functions of seed and position."""
        scale = self._engine.loss_scale
        return {
            "step": progress.step,
            "optimizer_step": self._engine.owned.optimizer_step,
            "skipped_steps": progress.skipped,
            "skipped_in_a_row": progress.skipped_in_a_row,
            "position": progress.step * self._config.global_batch,
            "random_numbers": "functions of the seed and of each sample's position",
            **self._course.state(),
            "origin": self._origin(),
            "metrics": progress.numbers,
            "world_size": dist.get_world_size(),
            "zero_stage": self._config.zero_stage,
            "precision": self._config.precision,
            "loss_scale": scale.state() if scale else None,
            "versions": {name: version(name) for name in ("foldtrain", "torch", "deepspeed")},
        }
