"""The training loop that all stages share.

1. build the stage, wrap it in the engine, restore the newest complete checkpoint
2. step s: positions [s*B, (s+1)*B) give this rank's batch; nothing else does
3. every `log_every` steps a record, every `checkpoint_every` a checkpoint, written in the background
4. at the end the network is put together from the last checkpoint and exported
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, StorageAwayError
from data_pipeline.leases.lease import Watch
from data_pipeline.shards import weights
from data_pipeline.storage.watchdog import LONG, Watchdog, print_late
from model.layers.attention import attention_record
from trainer.checkpoints import exporting
from trainer.checkpoints.agreement import Agreement
from trainer.engine.batches import Batch
from trainer.engine.blocks import compile_blocks, recompute_blocks
from trainer.engine.deepspeed_engine import NUMBER_FORMATS, Engine, StepResult, prepare_deepspeed
from trainer.engine.schedule import learning_rate
from trainer.job import TrainJob
from trainer.loop.ending import Ending, EndRequest
from trainer.loop.ledger_writer import Ledger
from trainer.loop.run_checkpoints import Progress, RunCheckpoints
from trainer.planning.model_flops import model_flops
from trainer.records.meter import Meter
from trainer.records.run_directory import RunDirectory, append_event, environment
from trainer.rollback.course import Course, describe
from trainer.rollback.spikes import Rollback
from trainer.stages.stage import Stage

_SETTLE_SECONDS = 60
"""How long a failing process waits for an upload that is under way."""
_RECORD_SECONDS = 5
"""How long a checkpoint waits for storage to take the records of its steps."""
_COMMIT_SECONDS = 60
"""How long a decision waits for storage to take it before it is acted on."""


class Loop:
    """One stage on one rank.

    Args:
        job: what to train.
        stage: the network, its data and its loss.
        device: of this rank.
        began: unix time at which this start began, before the stage was built; now if None.
        request: through which others ask for the end before the last step.
    """

    def __init__(
        self,
        job: TrainJob,
        stage: Stage,
        device: torch.device,
        began: float | None = None,
        request: EndRequest | None = None,
    ) -> None:
        self._began = began or time.time()
        prepare_deepspeed(device)
        self.job, self.stage, self.config = job, stage, job.section.trainer
        self.device = device
        modules = [trainable.module for trainable in stage.trainables.values()]
        networks = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        if self.config.activation_checkpointing:
            recompute_blocks(networks)
        if self.config.compile:
            compile_blocks(networks)
        self.engines = {
            name: Engine(trainable, self.config, device, self._hold) for name, trainable in stage.trainables.items()
        }
        self.main = self.engines[stage.exported]
        self.progress = Progress()
        self.records: RunDirectory | None = None
        self.agreement = Agreement()
        self.course = Course(job.folder, job.checkpoints, self.config.spikes, self.agreement)
        self.checkpoints = RunCheckpoints(job, stage, self.engines, self.course, self.agreement, self._event)
        self.writer = self.checkpoints.writer
        self.writer.before_commit = self._before_commit
        self.lease = Watch(job.lease) if job.lease and self.agreement.rank == 0 else None
        flops = self.flops = model_flops(job, device, dist.get_world_size())
        self.meter = Meter(self.config, flops.per_step, flops.peak, stage.exported)
        self.ledger: Ledger | None = None
        self.watchdog = Watchdog(job.reading.late_seconds, self._say_late)
        self._request = request or EndRequest()
        self.ending = Ending.FINISHED

    @property
    def step(self) -> int:
        """Steps that were done or passed over."""
        return self.progress.step

    def _event(self, event: str, step: int, **details: Any) -> None:
        if self.records:
            self.records.event(event, step, **details)
        elif self.agreement.rank == 0:  # before the start is on record
            append_event(self.job.folder, event, step, **details)

    def _guard(self) -> None:
        """Raise if another driver has taken this stage over: then nothing more of this one may be written."""
        if self.lease:
            self.lease.confirm()

    def _before_commit(self) -> None:
        """A start from a checkpoint does not repeat the steps before it, so their records have to be there, too."""
        self._guard()
        if self.records:
            self.records.keep(_RECORD_SECONDS)

    def request_stop(self) -> None:
        """End after the step under way, with a checkpoint. From any thread, on any rank."""
        self._request.stop()

    def run(self) -> bool:
        """Train from the newest complete checkpoint to the end, then export.

        Returns:
            Whether the end was reached; if not, `ending` says why, and the same again goes on from there.
        """
        with self.watchdog.waiting(f"{self.job.stage}: the start", LONG):
            self._resume()
            self.checkpoints.reserve()
            if dist.get_rank() == 0:
                self._open_records()
        if self.stage.samples is not None:
            keys, order = self.stage.samples.keys, self.stage.samples.order()
            step = self.progress.resumed_at
            self.ledger = Ledger(self.job.folder, order, keys, step, self.device, self._guard)
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
            if self.lease:
                self.lease.close()
        dist.barrier()
        return self.ending is Ending.FINISHED

    def _train(self) -> None:
        self.meter.start()
        if self.records:
            self.records.under_way(self.progress.resumed_at)
        stopping = False
        while self.step < self.config.steps and not stopping:
            began = time.perf_counter()
            batch = self._next_batch()
            waited = time.perf_counter() - began
            result = self._train_step(batch)
            if self.records:
                self.records.first_step(self.step)
            self.meter.add(result, waited, time.perf_counter() - began, batch.tokens)
            last = self.step == self.config.steps
            if self.step % self.config.log_every == 0 or last:
                self._record()
            if self.lease and self.lease.lost:
                raise self.lease.lost
            stopping = self._between_steps(last)
        self._checkpoint()  # if the last steps were passed over, or the run stopped at a rollback, there is none yet
        self.checkpoints.finish(self.progress)
        if self.step == self.config.steps:
            self.ending = Ending.FINISHED
        if self.records and self.ending is Ending.FINISHED:
            self._export()
            self.records.event("finish", self.step)
        elif self.records:
            self.records.event("stop", self.step, ending=self.ending)

    def _next_batch(self) -> Batch:
        with self.watchdog.waiting(f"{self.job.stage}: the batch of step {self.step}"):
            batch: Batch = self.stage.batch(self.step)
        if self.ledger and batch.index_B is not None:
            self.ledger.add(self.step, batch.index_B)
        return batch.to(self.device)

    def _say_late(self, wait: str) -> None:
        """Called by the watchdog; a rank without records says it on its own terminal."""
        print_late(wait)
        self._event("late", self.step, wait=wait)

    def _between_steps(self, last: bool) -> bool:
        """Agree with all ranks, move the checkpoint that is under way on, begin the next. Returns whether to stop."""
        asked = (self._request.stop_asked, self._request.pause_asked)
        here = (*asked, self.checkpoints.is_due(), self.writer.busy, self.course.spike is not None)
        ended, paused, due, busy, spiked = self.agreement.any(*here)
        self.ending = Ending.STOPPED if ended else Ending.PAUSED if paused else Ending.FINISHED
        stop = ended or paused
        self.writer.advance(any_busy=busy)
        if spiked and self._went_back():
            return stop
        due = due or self.checkpoints.failed or self.step % self.config.checkpoint_every == 0
        if last or stop or due:
            self._checkpoint()
        return stop

    def _record(self) -> None:
        record = self.meter.record(
            self.step, sum(self.progress.skipped.values()), self.step - self.course.consumed(self.step)
        )
        self.progress.numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
        if self.records:
            self.records.metrics(record)

    def _hold(self) -> None:
        began = time.perf_counter()
        self.writer.hold()
        self.meter.block(time.perf_counter() - began)

    def _went_back(self) -> bool:
        """Record a spike and, if that was decided, go back to a checkpoint (a collective)."""
        if self.course.may_go_back:
            self.checkpoints.settle()  # what is under way may be where to go back to
        found = self.course.decide()
        if found is None:
            return False
        spike, decision = found
        if self.records:
            self.records.event("spike", spike.last, **describe(spike, decision))
            self._name_samples(range(spike.first, spike.last + 1))
        if decision is None:
            return False
        self._commit_decision(decision)
        self.course.take(decision)
        self._resume()
        if self.records:
            self.records.rollback(self.progress.resumed_at)
        if self.ledger:
            self.ledger.restart(self.progress.resumed_at)
        self.meter.start()
        return True

    def _commit_decision(self, decision: Rollback) -> None:
        """Have the decision outlive this process before anything follows from it (a collective)."""
        stored = self.records is None or self.records.commit(_COMMIT_SECONDS)
        if not self.agreement.from_first(stored):
            raise StorageAwayError(
                f"{self.job.folder}/events.jsonl: the rollback to step {decision.to} could not be stored in "
                f"{_COMMIT_SECONDS} seconds, so it was not done. Mend the storage and start the same command again."
            )

    def _name_samples(self, steps: range) -> None:
        if self.stage.samples is not None:
            for step in steps:
                self._event("spike_samples", step, keys=self.stage.samples.step_keys(step))

    def _train_step(self, batch: Batch) -> StepResult:
        rate = learning_rate(self.config, self.step)
        parts = batch.split(self.main.accumulation)
        with self.watchdog.waiting(f"{self.job.stage}: step {self.step}", LONG):
            terms = self.stage.step(parts, self.engines, rate)
        updates = {name: engine.take_update() for name, engine in self.engines.items()}
        result = StepResult(terms, {name: update for name, update in updates.items() if update})
        self.course.watch(self.step, result)
        self.progress.step = self.course.next_step(self.step + 1)
        self._count_skips(result)
        details = self.stage.after_step(self.step, self.engines)
        if details and self.records:
            self.records.event("restarted_codes", self.step, **details)
        return result

    def _count_skips(self, result: StepResult) -> None:
        for name, update in result.updates.items():
            self.progress.count(name, update.applied)
            if update.applied:
                continue
            in_a_row = self.progress.skipped_in_a_row[name]
            if self.records:
                self.records.event("skipped_step", self.step, trainable=name, in_a_row=in_a_row)
            if in_a_row > self.config.max_skipped_steps:
                raise FoldtrainError(
                    f"{self.job.folder}: {in_a_row} optimizer steps in a row were skipped up to step {self.step}, "
                    f"because gradients of the {name} are not finite. Lower learning_rate, set gradient_clipping, or "
                    "train in fp32, and go on with accept_changes=true."
                )

    def _resume(self) -> None:
        self.progress = self.checkpoints.resume()

    def _open_records(self) -> None:
        devices = {"device": str(self.device), "workers": dist.get_world_size(), "backend": dist.get_backend()}
        details = {"deepspeed": self.main.settings, "threads": torch.get_num_threads()} | devices
        details["attention"] = attention_record(self.device, NUMBER_FORMATS[self.config.precision])
        details |= {"peak_flops": self.flops.peak, "mfu": self.flops.left_out}
        job, resumed_at = self.job, self.progress.resumed_at
        job.begin(resumed_at)
        storage.write_json(storage.join(job.folder, "environment.json"), environment(details))
        self.records = RunDirectory(
            *(job.folder, job.stage, job.config, resumed_at, job.tracking, self._began),
            workers=dist.get_world_size(),
            guard=self._guard,
        )
        if self.flops.left_out:
            self.records.event("no_mfu", resumed_at, reason=self.flops.left_out)

    def _checkpoint(self) -> None:
        if self.checkpoints.has(self.step):
            return
        began = time.perf_counter()
        if self.ledger:
            self.ledger.commit(self.step)
        self.checkpoints.save(self.progress)
        self.meter.block(time.perf_counter() - began)

    def _export(self) -> None:
        self._guard()
        roles = {"model": "master"} | ({"ema": "ema"} if self.main.owned.keeps_ema else {})
        files: dict[str, dict[str, Tensor]] = {}
        for name, role in roles.items():
            files[name] = exporting.whole_network(self.job.checkpoints, self.step, role)
        job, card = self.job, self.stage.card()
        weights.write_weights(job.export, job.stage, card, files, job.lineage, classes=job.classes, steps=self.step)
