"""The checkpoints of a run: what is in one, when one is due, and how a run goes on from one.

A write that fails is tried again for as long as storage is waited for (checkpoints/writer.py). A checkpoint that could
not be written in that time is taken anew at the next step; at the end of a run, until it is written or
`max_failed_checkpoints` in a row have failed, which the writer raises.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch.distributed as dist
from torch import Tensor

from data_pipeline import storage
from data_pipeline.errors import StorageAwayError
from data_pipeline.text.printable import printable
from trainer.checkpoints import catalog, commits, exporting
from trainer.checkpoints.commits import DamagedCheckpointError
from trainer.checkpoints.reader import CheckpointReader, adopt, check_origin, read_own
from trainer.checkpoints.snapshot import pieces
from trainer.checkpoints.writer import CheckpointWriter, Report
from trainer.engine.agreement import Agreement
from trainer.engine.deepspeed_engine import DeepSpeedEngines
from trainer.job import TrainJob
from trainer.rollback.rollbacks import Rollbacks
from trainer.stages.stage import Stage


@dataclass
class Progress:
    """How far a run is, equal on all ranks."""

    step: int = 0
    """Steps that were done or passed over."""
    resumed_at: int = 0
    """Step of the checkpoint that it went on from; 0 if from none."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Updates that were not applied, by trainable."""
    skipped_in_a_row: dict[str, int] = field(default_factory=dict)
    """Of these, the last ones."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """Of the last record since then."""

    def count(self, name: str, applied: bool) -> None:
        """Account for an update of a trainable."""
        if applied:
            self.skipped_in_a_row[name] = 0
            return
        for counts in (self.skipped, self.skipped_in_a_row):
            counts[name] = counts.get(name, 0) + 1


@dataclass(frozen=True)
class _Read:
    """What a rank has read of a checkpoint, besides what went into masters, moments and average."""

    reader: CheckpointReader
    buffers: dict[str, Tensor]
    stage: dict[str, Tensor]
    """The stage's own tensors; on other ranks than the first none."""


class RunCheckpoints:
    """Saves and restores the state of one stage on one rank.

    Args:
        job: what is trained.
        stage: the network and its own state.
        engines: of its trainables; their updates are held while they are copied.
        rollbacks: of the run.
        agreement: of all ranks.
        writer: of checkpoints.
        report: is told of each checkpoint, as `CheckpointWriter` does.
    """

    def __init__(
        self,
        job: TrainJob,
        stage: Stage,
        engines: DeepSpeedEngines,
        rollbacks: Rollbacks,
        agreement: Agreement,
        writer: CheckpointWriter,
        report: Report,
    ) -> None:
        self._job, self._stage, self._engines, self._rollbacks = job, stage, engines, rollbacks
        self._agreement, self._report, self.writer = agreement, report, writer
        self._config = job.section.trainer
        self._saved_time = time.monotonic()

    def reserve(self) -> None:
        """Allocate the host memory for them."""
        self.writer.reserve(pieces(self._engines, {}))

    def resume(self) -> Progress:
        """Go on from the newest checkpoint that keeps to what was decided about spikes, if there is any (a collective).

        One that any rank finds damaged is marked, named in an event and on the terminal, and left where it is; all
        ranks go on to the next older one together. What was read of it by then is overwritten.

        Raises:
            UsageError: if it was trained from something else.
            FoldtrainError: if a rollback was decided, and there is no checkpoint that keeps to it; or if there are
                checkpoints, and all are damaged.
            StorageAwayError: if storage stays away, which is no damage.
        """
        while (step := self._rollbacks.starting_checkpoint()) is not None:
            read, wrong = self._read(step)
            told = next((each for each in self._agreement.gather(wrong) if each), None)
            if told is None:
                assert read is not None
                return self._go_on(step, read)
            if self._agreement.rank == 0:
                self._set_aside(step, *told)
        self._rollbacks.load({})
        return Progress()

    def _read(self, step: int) -> tuple[_Read | None, tuple[str, str] | None]:
        """Read what this rank needs of a checkpoint, or find which file is damaged, and how; asks no other rank."""
        try:
            reader = CheckpointReader(catalog.step_folder(self._job.checkpoints, step))
            check_origin(reader, self._origin())
            buffers = read_own(reader, self._engines)
            stage = exporting.load_stage_state(reader) if self._agreement.rank == 0 else {}
        except DamagedCheckpointError as error:
            return None, (error.file, error.wrong)
        return _Read(reader, buffers, stage), None

    def _set_aside(self, step: int, file: str, wrong: str) -> None:
        """On rank 0: have no start choose a checkpoint again, and say why."""
        where = catalog.step_folder(self._job.checkpoints, step)
        if not storage.exists(storage.join(where, commits.COMPLETE)):
            return  # another process was removing it while it was read
        commits.mark(where, file, wrong)
        self._report("checkpoint_damaged", step, file=file, wrong=wrong)
        say = f"{self._job.stage}: the checkpoint of step {step} is damaged, and an older one is used: {file}: {wrong}"
        print(printable(say), file=sys.stderr, flush=True)  # noqa: T201 - whoever watches a start should see it

    def _go_on(self, step: int, read: _Read) -> Progress:
        """Take what all ranks have read (a collective)."""
        adopt(read.reader, self._engines, read.buffers)
        self._stage.load_state(read.stage)
        self._rollbacks.load(read.reader.state)
        states = {name: read.reader.trainable(name) for name in self._engines}
        for name, engine in self._engines.items():
            scale = states[name].loss_scale
            if engine.loss_scale and scale:  # a run may have gone over to fp16
                engine.loss_scale.load_state(scale.model_dump())
        self.writer.saved = step
        skipped, in_a_row = (
            {name: getattr(state, count) for name, state in states.items()} for count in ("skipped", "skipped_in_a_row")
        )
        return Progress(self._rollbacks.next_step(step), step, skipped, in_a_row)

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
        """Begin one, unless the last one does not end (a collective)."""
        found = pieces(self._engines, self._stage.state())
        self.writer.save(progress.step, found, self._state(progress))
        self._saved_time = time.monotonic()

    def finish(self, progress: Progress) -> None:
        """Wait for the last one, with which the run ends or is continued (a collective).

        Raises:
            FoldtrainError: if it failed so often that the writer gives up.
        """
        self.writer.finish()
        while self.writer.saved != progress.step:
            if self.writer.under_way is None:
                self.save(progress)
            self.writer.finish()
        if progress.step == progress.resumed_at:
            self.writer.tidy(progress.step)

    def wait_for_upload(self) -> None:
        """Wait for the one under way, from which the run may have to go on (a collective).

        Raises:
            StorageAwayError: if it does not end.
        """
        if not self.writer.finish():
            raise StorageAwayError(
                f"{self._job.checkpoints}: the checkpoint of step {self.writer.under_way} has been under way for more "
                f"than {self._config.checkpoint_wait_seconds:.0f} s (trainer.checkpoint_wait_seconds), and the run has "
                "to go back to it, or to one before. Mend the storage and start the same command again."
            )

    def _origin(self) -> dict[str, Any]:
        """What the weights were made from, besides the settings."""
        return {"stage": self._job.stage, "seed": self._job.seed, "lineage": self._job.lineage}

    def _state(self, progress: Progress) -> dict[str, Any]:
        """All that is saved besides tensors. Random numbers need none: they are functions of seed and position."""
        return {
            "step": progress.step,
            "trainables": {name: self._trainable_state(name, progress) for name in self._engines},
            "exported": self._stage.exported,
            "skipped_steps": sum(progress.skipped.values()),
            "position": progress.step * self._config.global_batch,
            "random_numbers": "functions of the seed and of each sample's position",
            **self._rollbacks.state(),
            "origin": self._origin(),
            "metrics": progress.numbers,
            "world_size": dist.get_world_size(),
            "zero_stage": self._config.zero_stage,
            "precision": self._config.precision,
            "versions": {name: version(name) for name in ("foldtrain", "torch", "deepspeed")},
        }

    def _trainable_state(self, name: str, progress: Progress) -> dict[str, Any]:
        engine = self._engines[name]
        return {
            "optimizer_step": engine.owned.optimizer_step,
            "skipped": progress.skipped.get(name, 0),
            "skipped_in_a_row": progress.skipped_in_a_row.get(name, 0),
            "loss_scale": engine.loss_scale.state() if engine.loss_scale else None,
        }
