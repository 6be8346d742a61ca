"""Checkpoints in the background: a thread per rank copies to host memory while forward and backward run, and uploads.

    main thread, all ranks                             thread
    save           lay out the file                 -> copy to host memory
    wait_for_copy  before an update                    upload the rank's file, then its part of the index
    advance        all ranks' uploads are done      -> rank 0: index, state, COMPLETE; remove old ones
    advance        the commit is done                  ready for the next

`advance` is called between steps by all ranks at once, with what they agreed on, so all ranks are always in the same
phase. A write that fails is tried again for as long as storage is waited for (`Persistence`); only then has the
checkpoint failed. No thread ever takes part in a collective. A save that finds the last one unfinished waits for it,
for a bounded time: then the new one has failed, and the last one goes on. There is never more than one under way, and
one snapshot.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from tenacity import RetryCallState, Retrying, retry_if_exception, sleep_using_event, wait_random_exponential

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.leases.lease import LeaseLostError
from data_pipeline.storage.pacing import positive_number
from data_pipeline.storage.retries import DEFAULT_PATIENCE, LONGEST_WAIT, PATIENCE_VARIABLE
from data_pipeline.text.counted import counted
from trainer.checkpoints import retention
from trainer.checkpoints.catalog import step_folder
from trainer.checkpoints.commits import TakenError, commit
from trainer.checkpoints.index import Index, merge
from trainer.checkpoints.retention import Retention
from trainer.checkpoints.snapshot import Piece, Snapshot
from trainer.engine.agreement import Agreement
from trainer.rollback.spikes import Rollback

_POLL_SECONDS = 10.0
"""Longest time between two questions to all ranks whether one of them still waits."""
FIRST_PAUSE = 0.2
"""Seconds that the first pause lasts at most; each next one twice as long."""
_LOG = logging.getLogger(__name__)


class Persistence:
    """How long a write is tried.

    Args:
        seconds: from its first try to the start of its last one; None for FOLDTRAIN_STORAGE_PATIENCE.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = _configured() if seconds is None else seconds
        self._hurried = threading.Event()

    def hurry(self) -> None:
        """End with the try that is under way: the process is about to end."""
        self._hurried.set()

    def run(self, what: str, work: Callable[[], None]) -> None:
        """Do it until it succeeds.

        Args:
            what: it is, for messages.
            work: what may be done any number of times.

        Raises:
            FoldtrainError: if it still fails after all tries; it says how many there were.
            Exception: what `work` raises that does not pass, unchanged.
        """
        began = time.monotonic()

        def stop(state: RetryCallState) -> bool:
            return self._hurried.is_set() or time.monotonic() - began + state.upcoming_sleep > self.seconds

        def say(state: RetryCallState) -> None:
            if state.attempt_number == 1:
                error = state.outcome.exception() if state.outcome else None
                _LOG.warning("%s: %s: %s; trying again for %g s", what, type(error).__name__, error, self.seconds)

        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop,
            wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_WAIT),
            sleep=sleep_using_event(self._hurried),
            before_sleep=say,
            reraise=True,
        )
        try:
            retrying(work)
        except Exception as error:
            tries = retrying.statistics["attempt_number"]
            if tries == 1 or not _may_pass(error):
                raise
            passed = time.monotonic() - began
            tried = f"tried {counted(tries, 'time')} in {passed:.0f} s"
            raise FoldtrainError(f"{type(error).__name__}: {error} ({tried})") from error


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError | FoldtrainError) and not isinstance(error, LeaseLostError | TakenError)


def _configured() -> float:
    return positive_number(PATIENCE_VARIABLE) if os.environ.get(PATIENCE_VARIABLE) else DEFAULT_PATIENCE


@dataclass
class _Saving:
    """The checkpoint that is under way."""

    step: int
    state: dict[str, Any]
    began: float
    blocked: float
    phase: Literal["upload", "commit"] = "upload"
    work: Future[Any] | None = None
    copied: threading.Event = field(default_factory=threading.Event)


Report = Callable[..., None]
"""Called on rank 0 as report(event, step, **details), from any thread."""


def _start(function: Callable[[], Any]) -> Future[Any]:
    """Run a function on a thread that does not keep a process alive which ends for another reason."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # the main thread asks for it
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time.

    Args:
        checkpoints: their folder, at any URI.
        agreement: of all ranks.
        keep: which checkpoints stay when a newer one is complete.
        most_failures: in a row, after which the run stops.
        report: is told of each checkpoint that is complete, and of each that failed.
        patience: seconds for which one that is under way is waited for.
        decisions: the rollbacks of the run so far: what they took back does not count as new.
        before_commit: called on rank 0, from its thread, when all of a checkpoint but COMPLETE is about to be written;
            and before `tidy` removes something.
    """

    def __init__(
        self,
        checkpoints: str,
        agreement: Agreement,
        keep: Retention,
        most_failures: int,
        report: Report,
        patience: float = 900.0,
        decisions: Callable[[], Sequence[Rollback]] = tuple,
        before_commit: Callable[[], object] = lambda: None,
    ) -> None:
        self.checkpoints = checkpoints
        self._patience = patience
        self.failures = 0
        self.saved: int | None = None
        """Step of the newest checkpoint that is complete, equal on all ranks; None if there is none yet."""
        self._decisions, self._before_commit = decisions, before_commit
        self._agreement, self._keep, self._most_failures = agreement, keep, most_failures
        self._report = report
        self._first_attempt: int = agreement.from_first(uuid4().int >> 96)
        self._attempts = 0
        self._snapshot = Snapshot()
        self.persistence = Persistence()
        self._saving: _Saving | None = None

    def reserve(self, found: list[Piece]) -> None:
        """Allocate the host memory for checkpoints of such pieces."""
        self._snapshot.reserve(found)

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is at work. The main thread puts it into the agreement of each step."""
        saving = self._saving
        return saving is not None and saving.work is not None and not saving.work.done()

    @property
    def under_way(self) -> int | None:
        """Step of the checkpoint that is under way on any rank, equal on all ranks."""
        return self._saving.step if self._saving else None

    def save(self, step: int, found: list[Piece], state: dict[str, Any]) -> None:
        """Begin a checkpoint (a collective, as it waits for the one before); if that does not end, this one has failed.

        Raises:
            FoldtrainError: if too many checkpoints in a row have failed.
        """
        began = time.perf_counter()
        if not self.finish(step):
            return
        self._attempts += 1
        self._snapshot.begin(found, self._file(self._agreement.rank, "safetensors"))
        self._saving = _Saving(step, state, time.perf_counter(), time.perf_counter() - began)
        self._saving.work = _start(self._upload)

    def wait_for_copy(self) -> None:
        """Wait until what is being saved may change. To be called before each optimizer update."""
        saving = self._saving
        if saving is not None and not saving.copied.is_set():
            began = time.perf_counter()
            saving.copied.wait()
            saving.blocked += time.perf_counter() - began

    def finish(self, wanted: int | None = None) -> bool:
        """Wait until nothing is under way, as long as `patience` says (a collective).

        Args:
            wanted: step of the checkpoint that waits, and has failed if this takes too long; by default the one that
                is under way.

        Returns:
            Whether nothing is.

        Raises:
            FoldtrainError: if too many checkpoints in a row have failed.
        """
        end = time.monotonic() + self._patience
        while self._saving is not None:
            if self._saving.work is not None:  # no collective of other ranks should wait for long
                wait([self._saving.work], timeout=min(_POLL_SECONDS, max(0.0, end - time.monotonic())))
            busy, late = self._agreement.any(self.busy, time.monotonic() >= end)
            if busy and late:
                self.wait_for_copy()
                step = self._saving.step
                error = f"the checkpoint of step {step} is still under way after {self._patience:g} s"
                self._fail(step if wanted is None else wanted, f"{error} (checkpoint_wait_seconds)")
                return False
            self.advance(any_busy=busy)
        return True

    def advance(self, *, any_busy: bool) -> None:
        """Go on to the next phase if no rank is busy in this one (a collective if so).

        Raises:
            FoldtrainError: if too many checkpoints in a row have failed.
        """
        saving = self._saving
        if saving is None or any_busy:
            return
        error = saving.work.exception() if saving.work else None
        errors = [told for told in self._agreement.gather(error and f"{type(error).__name__}: {error}") if told]
        if errors:
            self._end(saving, errors[0])
        elif saving.phase == "upload":
            saving.phase = "commit"
            saving.work = _start(self._commit) if self._agreement.rank == 0 else None
        else:
            self._end(saving, None)

    def end(self, seconds: float) -> None:
        """Let this rank's thread end, before the process does; no other rank is asked."""
        self.persistence.hurry()
        if self._saving and self._saving.work:
            wait([self._saving.work], timeout=seconds)

    def _end(self, saving: _Saving, error: str | None) -> None:
        self._saving = None
        if error:
            self._fail(saving.step, error)
        else:
            self.failures, self.saved = 0, saving.step

    def _fail(self, step: int, error: str) -> None:
        self.failures += 1
        if self._agreement.rank == 0:
            self._report("checkpoint_failed", step, error=error, in_a_row=self.failures)
        if self.failures >= self._most_failures:
            raise FoldtrainError(
                f"{self.checkpoints}: {counted(self.failures, 'checkpoint')} in a row could not be written, the last "
                f"at step {step} ({error}). Mend the storage and start the same command again; "
                "max_failed_checkpoints says how many may fail."
            )

    @property
    def _attempt(self) -> str:
        """Name of the attempt that began last, equal on all ranks: its own for each, whatever an earlier one left."""
        return f"{(self._first_attempt + self._attempts) % 2**32:08x}"

    def _file(self, rank: int, kind: str) -> str:
        return f"rank_{rank:04d}-{self._attempt}.{kind}"

    def _upload(self) -> None:
        """On every rank's thread: the copy, the file, then its part of the index."""
        assert self._saving is not None
        try:
            self._snapshot.complete()
        finally:
            self._saving.copied.set()
        folder, rank = step_folder(self.checkpoints, self._saving.step), self._agreement.rank
        part = self._snapshot.index().to_bytes()  # the CRCs are of what was copied, whatever the upload does to it

        def write() -> None:
            storage.write_bytes(storage.join(folder, self._file(rank, "safetensors")), self._snapshot.data())
            storage.write_bytes(storage.join(folder, self._file(rank, "json")), part)

        self.persistence.run(folder, write)

    def _commit(self) -> None:
        """On rank 0's thread, when all ranks have uploaded."""
        saving = self._saving
        assert saving is not None
        folder = step_folder(self.checkpoints, saving.step)
        names = [self._file(rank, "json") for rank in range(self._agreement.world)]
        index = Index([], {})

        def write() -> None:
            nonlocal index
            self._before_commit()
            parts = [Index.from_bytes(storage.read_bytes(storage.join(folder, name))) for name in names]
            index = merge(parts, self._attempt)
            commit(folder, index.to_bytes(), saving.state, self._attempt)

        self.persistence.run(folder, write)
        self._report(
            "checkpoint",
            saving.step,
            blocked_seconds=round(saving.blocked, 3),
            seconds=round(time.perf_counter() - saving.began, 3),
            bytes=sum(index.files.values()),
        )
        self._remove(saving.step, lambda: retention.remove_strays(self.checkpoints, saving.step, index))

    def tidy(self, step: int) -> None:
        """On rank 0, where nothing more is saved: remove what a start left that died once its last one was complete.

        Args:
            step: of the newest checkpoint.
        """

        def strays() -> None:
            self._before_commit()  # or another driver may be at work here by now
            retention.all_strays(self.checkpoints, retention.remove_strays)

        if self._agreement.rank == 0:
            self._remove(step, strays)

    def _remove(self, step: int, strays: Callable[[], object]) -> None:
        try:
            strays()
            retention.apply(self.checkpoints, self._keep, self._decisions())
        except Exception as error:  # the checkpoint is complete; what could not be removed is said
            self._report("checkpoint_not_removed", step, error=f"{type(error).__name__}: {error}")
