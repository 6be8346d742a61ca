"""How a stage stands, as the monitor shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.pool.shard_ledger import WorkerRate

Status = Literal["running", "stalled", "stopped", "finished", "failed"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a stage."""

    time: float
    """Unix time, seconds."""
    stage: str
    """Where."""
    text: str
    """What."""


@dataclass(frozen=True)
class StageView:
    """How a stage stands."""

    name: str
    """Its folder in the run."""
    status: Status
    """What it does."""
    age: float
    """Seconds since its last record."""
    done: int
    """Steps, or shards, so far."""
    total: int | None
    """Steps, or shards, in all, if it is known yet."""
    unit: str
    """What `done` counts."""
    losses: tuple[float, ...] = ()
    """The course of its loss, oldest first."""
    rate: float | None = None
    """Images per second."""
    eta: float | None = None
    """Seconds that are left."""
    skipped: int = 0
    """Optimizer steps that were skipped."""
    spikes: int = 0
    """Spikes of the loss."""
    passed_over: int = 0
    """Steps whose data it skipped for them."""
    restarts: int = 0
    """Times that it went on after an interruption."""
    goodput: float | None = None
    """Share of the wall time so far that was training."""
    spent: tuple[tuple[str, float], ...] = ()
    """Once it has ended: each cause with its share of the wall time, the largest first."""
    looked_at: int = 0
    """Step of the last look at held-out images."""
    held_out: tuple[tuple[str, float], ...] = ()
    """What it has found, by name; nothing if there was none."""
    workers: int | None = None
    """Processes at work, where that can change."""
    worker_rates: tuple[WorkerRate, ...] = ()
    """How fast each of them is."""
    events: tuple[Event, ...] = ()
    """What happened last."""

    @property
    def has_ended(self) -> bool:
        """Whether it does nothing any more, unless somebody starts it again."""
        return self.status in {"stopped", "finished", "failed"}
