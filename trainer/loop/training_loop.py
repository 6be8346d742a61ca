"""The training loop that all stages share.

1. restore the newest complete checkpoint
2. step s: positions [s*B, (s+1)*B) give this rank's batch, which is made while step s - 1 computes; nothing else does
3. what step s came to is read, and what all ranks want is agreed on, while step s + 1 computes
4. every `log_every` steps a record, every `checkpoint_every` a checkpoint, written in the background; both wait for
   what their last step came to. A look at held-out images, where a stage has them, has a record of its step, too
5. at the end the network is put together from the last checkpoint and exported

So a host launches a step without waiting for the one before, and a stop or a spike is acted on a step or two later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.errors import FoldtrainError, StorageAwayError
from data_pipeline.loading.prefetching import Ahead
from data_pipeline.shards import weights
from data_pipeline.shards.halves import halves_of
from data_pipeline.shards.measured import measured_of
from data_pipeline.storage.watchdog import LONG, Watchdog
from model.layers.attention import attention_record
from trainer.checkpoints import exporting
from trainer.engine.agreement import Agreement, Vote
from trainer.engine.arriving import Arriving
from trainer.engine.batches import Batch
from trainer.engine.deepspeed_engine import NUMBER_FORMATS, DeepSpeedEngines
from trainer.engine.engine import StepResult
from trainer.engine.schedule import learning_rate
from trainer.job import TrainJob
from trainer.loop.ending import Ending, EndRequest
from trainer.loop.journal import Journal
from trainer.loop.ledger_writer import Ledger
from trainer.loop.run_checkpoints import Progress, RunCheckpoints
from trainer.planning.model_flops import ModelFlops
from trainer.records.meter import Meter
from trainer.rollback.rollbacks import Rollbacks, describe
from trainer.rollback.spikes import Rollback
from trainer.stages.stage import Stage

_LAST_UPLOAD_SECONDS = 60
"""How long a failing process waits for an upload that is under way."""


class _Asked(NamedTuple):
    """What any rank wants or is doing between two steps."""

    stop: bool = False
    pause: bool = False
    due: bool = False
    """A checkpoint, by the clock."""
    busy: bool = True
    """A part of a checkpoint is being written."""
    spiked: bool = False

    def merged(self, other: _Asked) -> _Asked:
        return _Asked(*(one or two for one, two in zip(self, other, strict=True)))


@dataclass(frozen=True)
class _Launched:
    """A step whose outcome is on its way."""

    step: int
    trainables: tuple[str, ...]
    arriving: Arriving
    """The loss, then for each trainable whether it was updated; sums over `ranks`."""
    ranks: int


class Loop:
    """One stage on one rank; trainer.loop.compose puts it together.

    Args:
        job: what to train.
        stage: its networks, its data and its losses.
        device: of this rank.
        engines: of the stage's trainables.
        agreement: of all ranks.
        rollbacks: what was decided about spikes.
        checkpoints: of this run.
        meter: of this rank's steps.
        journal: where things are put on record.
        flops: operations of a step.
        request: through which others ask for the end before the last step.
    """

    def __init__(
        self,
        job: TrainJob,
        stage: Stage,
        device: torch.device,
        *,
        engines: DeepSpeedEngines,
        agreement: Agreement,
        rollbacks: Rollbacks,
        checkpoints: RunCheckpoints,
        meter: Meter,
        journal: Journal,
        flops: ModelFlops,
        request: EndRequest,
    ) -> None:
        self.job, self.stage, self.device, self.config = job, stage, device, job.section.trainer
        self.engines, self.agreement, self.rollbacks = engines, agreement, rollbacks
        self.checkpoints, self.writer = checkpoints, checkpoints.writer
        self.meter, self.journal, self._flops, self._request = meter, journal, flops, request
        self.progress, self.ending = Progress(), Ending.FINISHED
        self.ledger: Ledger | None = None
        self.watchdog = Watchdog(job.reading.late_seconds, lambda wait: journal.late(wait, self.step))
        self._batches: Ahead[int, Batch] = Ahead(self._make_batch, 1)
        self._launched: _Launched | None = None
        self._vote: Vote | None = None
        self._looked: Mapping[str, Any] | None = None
        """The newest look at held-out images of this start."""

    @property
    def step(self) -> int:
        """Steps that were done or passed over."""
        return self.progress.step

    def request_stop(self) -> None:
        """End after the step under way or the next, with a checkpoint. From any thread, on any rank."""
        self._request.stop()

    def run(self) -> bool:
        """Train from the newest complete checkpoint to the end, then export.

        Returns:
            Whether the end was reached; if not, `ending` says why, and the same again goes on from there.
        """
        with self.watchdog.waiting(f"{self.job.stage}: the start", LONG):
            self.progress = self.checkpoints.resume()
            self.checkpoints.reserve()
            self._open_journal()
        if self.stage.samples is not None:
            keys, order = self.stage.samples.keys, self.stage.samples.order()
            step = self.progress.resumed_at
            self.ledger = Ledger(self.job.folder, order, keys, step, self.device, self.journal.confirm)
        try:
            self._train()
        except Exception as error:
            self.writer.end(_LAST_UPLOAD_SECONDS)
            self.journal.event("failure", self.step, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            self.watchdog.close()
            self._flops.close()
            if self.ledger:
                self.ledger.close()
            self.journal.close()
        dist.barrier()
        return self.ending is Ending.FINISHED

    def _open_journal(self) -> None:
        details = {"deepspeed": self.engines[self.stage.exported].settings, "threads": torch.get_num_threads()}
        details |= {"device": str(self.device), "workers": dist.get_world_size(), "backend": dist.get_backend()}
        details["attention"] = attention_record(self.device, NUMBER_FORMATS[self.config.precision])
        details |= {"peak_flops": self._flops.peak, "mfu": self._flops.left_out}
        if self.stage.samples is not None:
            details["data"] = f"data is read {self.stage.samples.held}"
        self.journal.open(self.progress.resumed_at, details)
        if self._flops.left_out and self.journal.is_open:
            self.journal.event("no_mfu", self.progress.resumed_at, reason=self._flops.left_out)

    def _train(self) -> None:
        self.meter.start()
        self.journal.under_way(self.progress.resumed_at)
        stopping = False
        while self.step < self.config.steps and not stopping:
            began = time.perf_counter()
            batch = self._next_batch()
            waited = time.perf_counter() - began
            result = self._train_step(batch)
            self.journal.first_step(self.step)
            self.meter.add(result, waited, time.perf_counter() - began, batch.tokens)
            last = self.step == self.config.steps
            validated = self._validate()
            if self.step % self.config.log_every == 0 or last or validated:
                self._record(validated)
            self.journal.check()
            for event, details in self._request.take_notes():
                self.journal.event(event, self.step, **details)
            stopping = self._between_steps(last)
        self._checkpoint()  # if the last steps were passed over, or the run stopped at a rollback, there is none yet
        self.checkpoints.finish(self.progress)
        if self.step == self.config.steps:
            self.ending = Ending.FINISHED
        if not self.journal.is_open:
            return
        if self.ending is Ending.FINISHED:
            self._export()
            self.journal.event("finish", self.step)
        else:
            self.journal.event("stop", self.step, ending=self.ending)

    # ------------------------------------------------------------------------------------------------------- a step

    def _make_batch(self, step: int) -> Batch:
        """In a thread of its own: this rank's batch of a step, from where the device copies it without waiting."""
        batch: Batch = self.stage.batch(step)
        return batch.pin() if self.device.type == "cuda" else batch

    def _next_batch(self) -> Batch:
        after = self.rollbacks.next_step(self.step + 1)
        with self.watchdog.waiting(f"{self.job.stage}: the batch of step {self.step}"):
            batch = self._batches.get(self.step, [after] if after < self.config.steps else [])
        if self.ledger and batch.index_B is not None:
            self.ledger.add(self.step, batch.index_B)
        return batch.to(self.device)

    def _train_step(self, batch: Batch) -> StepResult:
        rate, step = learning_rate(self.config, self.step), self.step
        parts = batch.split(self.engines[self.stage.exported].accumulation)
        for engine in self.engines.values():
            engine.begin(step)
        with self.watchdog.waiting(f"{self.job.stage}: step {step}", LONG):
            terms = self.stage.step(parts, self.engines, rate)
            updates = {name: engine.take_update() for name, engine in self.engines.items()}
            result = StepResult(terms, {name: update for name, update in updates.items() if update})
            launched = self._launch(step, result)
            self._account()  # for the step before, beside this one
        self._launched = launched
        self.progress.step = self.rollbacks.next_step(step + 1)
        for event, details in self.stage.after_step(self.step, self.engines).items():
            if self.journal.is_open:
                self.journal.event(event, self.step, **details)
        return result

    def _launch(self, step: int, result: StepResult) -> _Launched:
        """Send what a step came to on its way to the host (a collective, if spikes are watched for)."""
        loss = result.terms["loss"]
        applied = [update.applied.to(loss) for update in result.updates.values()]
        outcome_N, work = torch.stack([loss, *applied]), None
        if self.rollbacks.watches:
            work = dist.all_reduce(outcome_N, async_op=True)
        ranks = self.agreement.world if self.rollbacks.watches else 1
        return _Launched(step, tuple(result.updates), Arriving(outcome_N, work), ranks)

    def _account(self) -> None:
        """Take in what the step launched last came to: skipped updates are counted, its loss is judged."""
        if self._launched is None:
            return
        launched, self._launched = self._launched, None
        loss, *flags = (number / launched.ranks for number in launched.arriving.get())
        applied = dict(zip(launched.trainables, map(bool, flags), strict=True))
        self.rollbacks.watch(launched.step, loss, applied=all(applied.values()))
        for name, moved in applied.items():
            self.progress.count(name, applied=moved)
            if not moved:
                self._skipped(launched.step + 1, name)

    def _skipped(self, step: int, name: str) -> None:
        in_a_row = self.progress.skipped_in_a_row[name]
        if self.journal.is_open:
            self.journal.event("skipped_step", step, trainable=name, in_a_row=in_a_row)
        if in_a_row > self.config.max_skipped_steps:
            raise FoldtrainError(
                f"{self.job.folder}: {in_a_row} optimizer steps in a row were skipped up to step {step}, because "
                f"gradients of the {name} are not finite. Lower learning_rate, set gradient_clipping, or train in "
                "fp32, and go on with accept_changes=true."
            )

    def _validate(self) -> dict[str, float | None]:
        """Look at the network, if a look is due (a collective). Returns the numbers that it has found."""
        validation = self.stage.validation
        if validation is None or not validation.is_due(self.step):
            return {}
        began = time.perf_counter()
        with self.watchdog.waiting(f"{self.job.stage}: the validation of step {self.step}", LONG):
            found = validation.look(self.engines[self.stage.exported], self.step)
        seconds = time.perf_counter() - began
        self._looked = {"step": self.step} | found.details
        self.meter.look(seconds)
        if self.journal.is_open:
            self.journal.event("validation", self.step, seconds=round(seconds, 3), **found.details)
            self.journal.pictures(self.step, found.pictures)
        return found.numbers

    def _record(self, validated: Mapping[str, float | None]) -> None:
        self._account()
        passed_over = self.step - self.rollbacks.consumed(self.step)
        record = self.meter.record(self.step, sum(self.progress.skipped.values()), passed_over) | dict(validated)
        if self.stage.samples is not None:
            epochs, views = record["samples"] / len(self.stage.samples.keys), self.stage.samples.views
            record |= {"epoch": round(epochs, 4)} | ({"crop_epoch": round(epochs / views, 4)} if views > 1 else {})
        self.progress.numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
        self.journal.metrics(record)

    # ------------------------------------------------------------------------------------------------ between steps

    def _ask(self) -> Vote:
        """Begin to agree with all ranks (a collective)."""
        due = self._request.take_checkpoint() or self.checkpoints.is_due()
        asked = self._request.stop_asked, self._request.pause_asked, due
        return self.agreement.begin(*asked, self.writer.busy, self.rollbacks.spike is not None)

    def _between_steps(self, last: bool) -> bool:
        """Act on what was agreed beside this step; begin to agree beside the next. Returns whether to stop.

        A step with a checkpoint, and the last one, wait for what they came to and agree anew: a checkpoint holds what
        is known of all its steps.
        """
        asked = _Asked(*self._vote.result()) if self._vote else _Asked()
        due = asked.due or self.checkpoints.failed or self.step % self.config.checkpoint_every == 0
        if last or due or asked.stop or asked.pause:
            self._account()
            asked = asked.merged(_Asked(*self._ask().result()))
        stop = asked.stop or asked.pause
        self.ending = Ending.STOPPED if asked.stop else Ending.PAUSED if asked.pause else Ending.FINISHED
        self.writer.advance(any_busy=asked.busy)
        rolled_back = asked.spiked and self._roll_back()
        if not rolled_back and (last or stop or due):
            self._checkpoint()
        self._vote = None if stop or self.step == self.config.steps else self._ask()
        return stop

    def _roll_back(self) -> bool:
        """Record a spike and, if that was decided, go back to a checkpoint (a collective)."""
        if self.rollbacks.are_wanted:
            self.checkpoints.wait_for_upload()  # what is under way may be where to go back to
        found = self.rollbacks.decide()
        if found is None:
            return False
        spike, decision = found
        if self.journal.is_open:
            self.journal.event("spike", spike.last, **describe(spike, decision))
            self._name_samples(range(spike.first, spike.last + 1))
        if decision is None:
            return False
        self._commit_decision(decision)
        self.rollbacks.take(decision)
        self._launched = None  # steps after the spike count for nothing
        self.progress = self.checkpoints.resume()
        self.journal.rollback(self.progress.resumed_at)
        if self.ledger:
            self.ledger.restart(self.progress.resumed_at)
        self.meter.start()
        return True

    def _commit_decision(self, decision: Rollback) -> None:
        """Have the decision outlive this process before anything follows from it (a collective)."""
        if not self.agreement.from_first(self.journal.commit()):
            raise StorageAwayError(
                f"{self.job.folder}/events.jsonl: the rollback to step {decision.to} could not be stored in time, so "
                "it was not done. Mend the storage and start the same command again."
            )

    def _name_samples(self, steps: range) -> None:
        if self.stage.samples is not None:
            for step in steps:
                self.journal.event("spike_samples", step, keys=self.stage.samples.step_keys(step))

    def _checkpoint(self) -> None:
        if self.checkpoints.has(self.step):
            return
        began = time.perf_counter()
        self._account()
        if self.ledger:
            self.ledger.commit(self.step)
        self.checkpoints.save(self.progress)
        self.meter.block(time.perf_counter() - began)

    def _export(self) -> None:
        self.journal.confirm()
        main = self.engines[self.stage.exported]
        roles = {"model": "master"} | ({"ema": "ema"} if main.owned.keeps_ema else {})
        files: dict[str, dict[str, Tensor]] = {}
        for name, role in roles.items():
            files[name] = exporting.whole_network(self.job.checkpoints, self.step, role)
        job, card = self.job, self.stage.card()
        halves = halves_of(self.stage.trainables[self.stage.exported].module)
        looked = self._looked or self.journal.last("validation", self.step)
        measured = measured_of(looked) if looked and looked["step"] == self.step else None
        weights.write_weights(
            *(job.export, job.stage, card, files, job.lineage),
            classes=job.classes,
            steps=self.step,
            halves=halves,
            measured=measured,
        )
