"""What a rank puts on record of its stage, and whether it still may. Rank 0 records all of it, the others nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from data_pipeline import storage
from data_pipeline.leases.lease import Watch
from data_pipeline.storage.watchdog import print_late
from trainer.job import TrainJob
from trainer.records.run_directory import RunDirectory, append_event, environment

_RECORD_SECONDS = 5
"""How long a checkpoint waits for storage to take the records of its steps."""
_COMMIT_SECONDS = 60
"""How long a decision waits for storage to take it before it is acted on."""


class Journal:
    """The records of one stage on one rank, and the lease that they need.

    Args:
        job: what is trained.
        rank: of this process.
        world: number of ranks.
        began: unix time at which this start began; now if None.
    """

    def __init__(self, job: TrainJob, rank: int, world: int, began: float | None = None) -> None:
        self._job, self._rank, self._world = job, rank, world
        self._began = began or time.time()
        self._records: RunDirectory | None = None
        self._lease = Watch(job.lease) if job.lease and rank == 0 else None

    def open(self, resumed_at: int, details: dict[str, Any]) -> None:
        """Begin, once the start is accepted; does nothing on other ranks than the first.

        Args:
            resumed_at: step from which it goes on.
            details: of what it runs on, for environment.json.
        """
        if self._rank:
            return
        job = self._job
        job.begin(resumed_at)
        storage.write_json(storage.join(job.folder, "environment.json"), environment(details))
        self._records = RunDirectory(
            job.folder,
            job.stage,
            job.config,
            resumed_at,
            job.tracking,
            self._began,
            workers=self._world,
            guard=self.confirm,
        )

    @property
    def is_open(self) -> bool:
        """Whether this rank records."""
        return self._records is not None

    def event(self, event: str, step: int, **details: Any) -> None:
        """Record that something happened; from any thread."""
        if self._records:
            self._records.event(event, step, **details)
        elif self._rank == 0:  # before the start is on record
            append_event(self._job.folder, event, step, **details)

    def metrics(self, record: dict[str, Any]) -> None:
        """Record measurements."""
        if self._records:
            self._records.metrics(record)

    def pictures(self, step: int, found: Mapping[str, bytes]) -> None:
        """Put pictures of a step (PNG) beside the records, by name; returns at once."""
        if self._records and found:
            self._records.pictures(step, found)

    def last(self, event: str, step: int) -> Mapping[str, Any] | None:
        """The newest event of a kind at a step, of this start or one before; None if there is none."""
        return self._records.last(event, step) if self._records else None

    def under_way(self, resumed_at: int) -> None:
        """Record what a restart has cost, before its first step."""
        if self._records:
            self._records.under_way(resumed_at)

    def first_step(self, step: int) -> None:
        """Record how long the first step of a command took to come; later calls do nothing."""
        if self._records:
            self._records.first_step(step)

    def rollback(self, step: int) -> None:
        """Record that training goes on from an earlier step."""
        if self._records:
            self._records.rollback(step)

    def late(self, wait: str, step: int) -> None:
        """Say that something is waited for longer than it should be."""
        print_late(wait)
        self.event("late", step, wait=wait)

    def commit(self) -> bool:
        """Have all events outlive this process. Returns whether they do, in a bounded time."""
        return self._records is None or self._records.commit(_COMMIT_SECONDS)

    def before_checkpoint(self) -> None:
        """A start from a checkpoint does not repeat the steps before it, so their records have to be there, too."""
        self.confirm()
        if self._records:
            self._records.keep(_RECORD_SECONDS)

    def confirm(self) -> None:
        """Raise if another driver has taken this stage over: then nothing more of this one may be written."""
        if self._lease:
            self._lease.confirm()

    def check(self) -> None:
        """Raise if that is known already; asks nobody."""
        if self._lease and self._lease.lost:
            raise self._lease.lost

    def close(self) -> None:
        """Finish all records, in a bounded time."""
        if self._records:
            self._records.close()
        if self._lease:
            self._lease.close()
