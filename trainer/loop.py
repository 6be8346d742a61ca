"""The training loop that all stages share.

1. build the stage, wrap it in the engine, restore the newest complete checkpoint
2. step s: positions [s*B, (s+1)*B) give this rank's batch; nothing else does
3. every `log_every` steps a record, every `checkpoint_every` a checkpoint, written in the background
4. at the end the network is put together from the last checkpoint and exported
"""

from __future__ import annotations

import sys
import threading
import time
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline import storage, weights
from data_pipeline.errors import FoldtrainError
from data_pipeline.ledger import DataOrder
from data_pipeline.watchdog import Watchdog
from model.attention import flash_refusal
from trainer.blocks import compile_blocks, recompute_blocks
from trainer.checkpoints import exporting, folder, restore
from trainer.checkpoints.agreement import Agreement
from trainer.checkpoints.reader import CheckpointReader
from trainer.checkpoints.retention import Retention
from trainer.checkpoints.snapshot import pieces
from trainer.checkpoints.writer import CheckpointWriter
from trainer.course import Course, describe
from trainer.engine import INDEX, Batch, Engine, StepResult, Terms, prepare_deepspeed, split_batch
from trainer.job import TrainJob
from trainer.ledger import Ledger
from trainer.meter import Meter
from trainer.run_directory import RunDirectory, environment
from trainer.schedule import learning_rate

_SETTLE_SECONDS = 60
"""How long a failing process waits for an upload that is under way."""
_COMMIT_SECONDS = 60
"""How long a decision waits for storage to take it before it is acted on."""


class Samples(Protocol):
    """The data set that a stage's batches are drawn from."""

    @property
    def keys(self) -> npt.NDArray[np.bytes_]:
        """Keys of all samples."""
        ...

    def order(self) -> DataOrder:
        """What the order of the samples follows from."""
        ...

    def step_keys(self, step: int) -> list[str]:
        """Keys of the samples of a step (from 0), over all ranks."""
        ...


class Stage(Protocol):
    """What differs between the networks that are trained."""

    @property
    def samples(self) -> Samples | None:
        """Where batches come from; each then says which samples it holds (`INDEX`)."""
        ...

    @property
    def network(self) -> nn.Module:
        """What is trained and exported. Anything frozen is kept outside of it."""
        ...

    @property
    def no_decay(self) -> set[str]:
        """Parameters of the network (by name) that weight decay leaves alone, besides all vectors."""
        ...

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the network."""
        ...

    def batch(self, step: int) -> Batch:
        """This rank's samples of an optimizer step, on its device."""
        ...

    def terms(self, batch: Batch) -> Terms:
        """Scalars of a micro-batch, one of them "loss", which is minimized."""
        ...

    def after_step(self, step: int, engine: Engine) -> dict[str, Any]:
        """Anything to do between steps; what it returns goes into events.jsonl if there is any."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Counts that outlive a step, summed over all ranks (a collective): saved with each checkpoint."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave. One rank gets it, the others get nothing, so that sums stay what they were."""
        ...


class _Trainee(nn.Module):
    """The stage's network with the loss as its forward, so that DeepSpeed sees one module."""

    def __init__(self, stage: Stage, precision: str, device: torch.device) -> None:
        super().__init__()
        self.network = stage.network
        self._stage = (stage,)  # in a tuple, so that frozen networks of the stage are not taken for parameters
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def forward(self, batch: Batch) -> Terms:
        with self._autocast:
            return self._stage[0].terms(batch)


class Loop:
    """One stage on one rank.

    Args:
        job: what to train.
        stage: the network, its data and its loss.
        device: of this rank.
        began: unix time at which this start began, before the stage was built; now if None.
    """

    def __init__(self, job: TrainJob, stage: Stage, device: torch.device, began: float | None = None) -> None:
        self._began = began or time.time()
        prepare_deepspeed()
        self.job, self.stage, self.config = job, stage, job.section.trainer
        trainee = _Trainee(stage, self.config.precision, device)
        if self.config.activation_checkpointing:
            recompute_blocks(trainee)
        if self.config.compile:
            compile_blocks(trainee)
        no_decay = {f"network.{name}" for name in stage.no_decay}
        self.engine = Engine(trainee, self.config, no_decay, device)
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.records: RunDirectory | None = None
        self.agreement = Agreement()
        self.writer = self._open_writer()
        self.engine.before_update = self._hold
        self.course = Course(job.folder, job.checkpoints, self.config.spikes, self.agreement)
        self.meter = Meter(self.config)
        self.ledger: Ledger | None = None
        self.watchdog = Watchdog(job.reading.late_seconds, self._say_late)
        self._stop_requested = threading.Event()
        self._saved_step, self._saved_time = -1, time.monotonic()
        self._numbers: dict[str, Any] = {}

    def _open_writer(self) -> CheckpointWriter:
        best = self.config.keep_best
        last, every = self.config.keep_checkpoints, self.config.keep_every
        keep = Retention(last, every, best.metric, best.mode) if best else Retention(last, every)
        most = self.config.max_failed_checkpoints
        return CheckpointWriter(self.job.checkpoints, self.agreement, keep, most, self._event)

    def _event(self, event: str, step: int, **details: Any) -> None:
        if self.records:
            self.records.event(event, step, **details)

    def request_stop(self) -> None:
        """End after the step that is under way, with a checkpoint. From any thread or signal handler, on any rank."""
        self._stop_requested.set()

    def run(self) -> bool:
        """Train from the newest complete checkpoint to the end, then export.

        Returns:
            Whether the end was reached; false after `request_stop`: the same again goes on from there.
        """
        self._resume()
        self.writer.reserve(pieces(self.engine.module, self.engine.owned, {}))
        if dist.get_rank() == 0:
            self._open_records()
        if self.stage.samples is not None:
            keys, order = self.stage.samples.keys, self.stage.samples.order()
            self.ledger = Ledger(self.job.folder, order, keys, max(0, self._saved_step), self.engine.device)
        try:
            self._train()
        except Exception as error:
            self.writer.settle(_SETTLE_SECONDS)
            self._event("failure", self.step, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            self.watchdog.close()
            if self.ledger:
                self.ledger.close()
            if self.records:
                self.records.close()
        dist.barrier()
        return self.step == self.config.steps

    def _train(self) -> None:
        self.meter.start()
        stopping = False
        while self.step < self.config.steps and not stopping:
            began = time.perf_counter()
            batch = self._next_batch()
            waited = time.perf_counter() - began
            result = self._train_step(batch)
            tokens = batch["tokens"].numel() if "tokens" in batch else 0
            self.meter.add(result, waited, time.perf_counter() - began, tokens)
            last = self.step == self.config.steps
            if self.step % self.config.log_every == 0 or last:
                self._record()
            stopping = self._between_steps(last)
        if self.step == self.config.steps:
            self._checkpoint()  # if the last steps were passed over, there is none yet
        self._finish_checkpoints()
        if self.records and self.step == self.config.steps:
            self._export()
            self.records.event("finish", self.step)
        elif self.records:
            self.records.event("stop", self.step)

    def _next_batch(self) -> Batch:
        with self.watchdog.waiting(f"{self.job.stage}: the batch of step {self.step}"):
            batch = self.stage.batch(self.step)
        index_B = batch.pop(INDEX, None)
        if self.ledger and index_B is not None:
            self.ledger.add(self.step, index_B.numpy())
        return batch

    def _say_late(self, wait: str) -> None:
        """Called by the watchdog; a rank without records says it on its own terminal."""
        print(wait, file=sys.stderr, flush=True)  # noqa: T201 - the stacks go there, too
        self._event("late_batch", self.step, wait=wait)

    def _between_steps(self, last: bool) -> bool:
        """Agree with all ranks, move the checkpoint that is under way on, begin the next. Returns whether to stop."""
        flags = self._stop_requested.is_set(), self._is_due(), self.writer.busy, self.course.spike is not None
        stop, due, busy, spiked = self.agreement.any(*flags)
        self.writer.advance(any_busy=busy)
        if spiked and self._went_back():
            return stop
        if last or stop or due or self.step % self.config.checkpoint_every == 0:
            self._checkpoint()
        return stop

    def _record(self) -> None:
        record = self.meter.record(self.step, self.skipped, self.step - self.course.consumed(self.step))
        self._numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
        if self.records:
            self.records.metrics(record)

    def _hold(self) -> None:
        began = time.perf_counter()
        self.writer.hold()
        self.meter.block(time.perf_counter() - began)

    def _went_back(self) -> bool:
        """Record a spike and, if that was decided, go back to a checkpoint (a collective)."""
        self.writer.finish()
        found = self.course.decide()
        if found is None:
            return False
        spike, decision = found
        if self.records:
            self.records.event("spike", spike.last, **describe(spike, decision))
            self._name_samples(range(spike.first, spike.last + 1))
            self.records.commit(_COMMIT_SECONDS)
        if decision is None:
            return False
        self.course.take(decision)
        self._resume()
        if self.records:
            self.records.rollback(self._saved_step)
        if self.ledger:
            self.ledger.restart(self._saved_step)
        self.meter.start()
        return True

    def _name_samples(self, steps: range) -> None:
        if self.stage.samples is not None:
            for step in steps:
                self._event("spike_samples", step, keys=self.stage.samples.step_keys(step))

    def _is_due(self) -> bool:
        """Whether rank 0's clock asks for a checkpoint."""
        minutes = self.config.checkpoint_minutes
        if minutes is None or dist.get_rank() > 0:
            return False
        return time.monotonic() - self._saved_time >= minutes * 60

    def _finish_checkpoints(self) -> None:
        """Wait for the last checkpoint, with which the run ends or is continued."""
        self.writer.finish()
        if self.writer.failures:
            raise FoldtrainError(
                f"{self.job.checkpoints}: the last checkpoint, at step {self.step}, could not be written "
                "(events.jsonl says why). Mend the storage and start the same command again."
            )

    def _train_step(self, batch: Batch) -> StepResult:
        # Stochastic depth and dropout draw from torch's generator: a function of seed, step and rank.
        torch.manual_seed((self.job.seed * 1_000_003 + self.step) * 4099 + dist.get_rank())
        rate = learning_rate(self.config, self.step)
        result = self.engine.step(split_batch(batch, self.engine.accumulation), rate)
        self.course.watch(self.step, result)
        self.step = self.course.next_step(self.step + 1)
        self._count_skips(result)
        details = self.stage.after_step(self.step, self.engine)
        if details and self.records:
            self.records.event("restarted_codes", self.step, **details)
        return result

    def _count_skips(self, result: StepResult) -> None:
        if result.applied:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.records:
            self.records.event("skipped_step", self.step, in_a_row=self.skipped_in_a_row)
        if self.skipped_in_a_row > self.config.max_skipped_steps:
            raise FoldtrainError(
                f"{self.job.folder}: {self.skipped_in_a_row} optimizer steps in a row were skipped up to step "
                f"{self.step}, because gradients are not finite. Lower learning_rate, set gradient_clipping, or train "
                "in fp32."
            )

    def _resume(self) -> None:
        """Go on from the newest checkpoint that keeps to what was decided about spikes, if there is any."""
        rank, step = dist.get_rank(), self.course.checkpoint()
        if step is None:
            self.course.load({})
            return
        reader = CheckpointReader(folder.step_folder(self.job.checkpoints, step))
        restore.check_origin(reader, self._origin())
        restore.load_checkpoint(reader, self.engine.module, self.engine.owned)
        self.stage.load_state(restore.load_stage_state(reader) if rank == 0 else {})
        self.course.load(reader.state)
        self._saved_step, self.skipped = reader.state["step"], reader.state["skipped_steps"]
        self.skipped_in_a_row = reader.state["skipped_in_a_row"]
        self.step = self.course.next_step(self._saved_step)

    def _origin(self) -> dict[str, Any]:
        """What the weights were made from, besides the settings."""
        return {"stage": self.job.stage, "seed": self.job.seed, "lineage": self.job.lineage}

    def _open_records(self) -> None:
        devices = {"device": str(self.engine.device), "workers": dist.get_world_size(), "backend": dist.get_backend()}
        details = {"deepspeed": self.engine.settings, "threads": torch.get_num_threads()} | devices
        refusal = flash_refusal(self.engine.device, self._dtype())
        details["attention"] = f"sdpa ({refusal})" if refusal else "flash_attn"
        storage.write_json(storage.join(self.job.folder, "environment.json"), environment(details))
        job, resumed_at = self.job, max(0, self._saved_step)
        self.records = RunDirectory(job.folder, job.stage, job.config, resumed_at, job.tracking, self._began)

    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.precision == "bf16" else torch.float32

    def _checkpoint(self) -> None:
        if self._saved_step == self.step:
            return
        began = time.perf_counter()
        if self.ledger:
            self.ledger.commit(self.step)
        found = pieces(self.engine.module, self.engine.owned, self.stage.state())
        self.writer.save(self.step, found, self._state())
        self._saved_step, self._saved_time = self.step, time.monotonic()
        self.meter.block(time.perf_counter() - began)

    def _state(self) -> dict[str, Any]:
        """All that is saved besides tensors. Random numbers need none: they are functions of seed, step and rank."""
        return {
            "step": self.step,
            "optimizer_step": self.engine.owned.optimizer_step,
            "skipped_steps": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "position": self.step * self.config.global_batch,
            "random_numbers": "torch.manual_seed of seed, step and rank before each step; samples by position",
            **self.course.state(),
            "origin": self._origin(),
            "metrics": self._numbers,
            "world_size": dist.get_world_size(),
            "zero_stage": self.config.zero_stage,
            "precision": self.config.precision,
            "versions": {name: version(name) for name in ("foldtrain", "torch", "deepspeed")},
        }

    def _export(self) -> None:
        roles = {"model": "master"} | ({"ema": "ema"} if self.engine.owned.keeps_ema else {})
        files: dict[str, dict[str, Tensor]] = {}
        for name, role in roles.items():
            files[name] = exporting.whole_network(self.job.checkpoints, self.step, role)
        weights.write_weights(self.job.export, self.job.stage, self.stage.card(), files, self.job.lineage)
