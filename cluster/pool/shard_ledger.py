"""What happens to the shards of a run: who makes which, how often each failed, how fast it goes. No Ray in here.

One object of this class lives in an actor beside the driver (cluster/pool/shard_pool.py). Workers tell it when they
begin and end a shard, so that a shard whose process is gone is known, too.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["make", "later", "drop"]
"""What a worker is to do with a shard: make it, hand it back, or forget it since it is settled."""

WINDOW_SECONDS = 60.0
"""Rates are those of the last minute."""
ALIVE_SECONDS = 20.0
"""A worker that has not been heard of for so long is not counted as alive."""
_RETRIES_IN_PLACE = 1
"""Times that a shard whose process died is tried again where Ray restarts it; from then on another worker gets it."""
_SLOW = 0.5
"""A worker is named when it is slower than this share of the median."""
PROCESS_DIED = "its process ended while it was made (killed, out of memory, or a crash in a library)"


class Meter:
    """Images per second over the last minute."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._counts: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, images: int, now: float) -> None:
        """Count images that were done just now."""
        self._counts.append((now, images))
        self._sum += images

    def rate(self, now: float) -> float:
        """Images per second."""
        while self._counts and self._counts[0][0] < now - WINDOW_SECONDS:
            self._sum -= self._counts.popleft()[1]
        return self._sum / max(1.0, min(WINDOW_SECONDS, now - self._since))


@dataclass
class _Worker:
    host: str
    meter: Meter
    heard: float
    """When it last gave a sign of life."""


@dataclass
class InFlight:
    """A shard that is being made."""

    name: str
    worker: str
    host: str
    began: float
    advanced: float
    """When it last got further."""
    images: int = 0
    """Images of it that are done."""


@dataclass(frozen=True)
class WorkerRate:
    """How fast a worker is."""

    worker: str
    host: str
    images_per_second: float


@dataclass(frozen=True)
class Result:
    """A shard that is settled: made, or tried often enough."""

    name: str
    made: bool
    facts: dict[str, Any] = field(default_factory=dict)
    """What making it gave."""
    reasons: tuple[str, ...] = ()
    """Why each try failed."""
    host: str = ""
    """Where it was made, or failed last."""


@dataclass(frozen=True)
class Report:
    """How things stand, for the driver."""

    ledger: float
    """When this ledger was made: one that was restarted has forgotten the rest."""
    now: float
    """The ledger's clock."""
    results: tuple[Result, ...]
    """What was settled since the last report."""
    in_flight: tuple[InFlight, ...]
    workers: tuple[WorkerRate, ...]
    """Those that are alive."""
    waiting: int
    """Shards of this pass that nobody has begun."""
    last_begin: float
    images_per_second: float
    median_seconds: float | None
    """Of the shards that were made by this run."""
    refused: int
    """Times that one could not."""
    refusals: tuple[str, ...]
    """Why, newest last."""
    opened: int
    """Times that a worker of this pass opened what it needs."""
    fatal: Exception | None
    """An error of the user that concerns all shards."""


class Ledger:
    """Decides who makes a shard, and counts.

    Args:
        max_attempts: failures after which a shard is set aside.
        clock: seconds.
    """

    def __init__(self, max_attempts: int, clock: Callable[[], float] = time.monotonic) -> None:
        now = clock()
        self._clock, self._max_attempts, self._made_at = clock, max_attempts, now
        self._draining = False
        self._waiting: set[str] = set()
        self._settled: set[str] = set()
        self._results: list[Result] = []
        self._failures: dict[str, list[str]] = {}
        self._died_in_pass: dict[str, int] = {}
        self._in_flight: dict[tuple[str, str], InFlight] = {}
        self._workers: dict[str, _Worker] = {}
        self._meter = Meter(now)
        self._seconds: list[float] = []
        self._last_begin = now
        self._refusals: list[str] = []
        self._opened = 0
        self._fatal: Exception | None = None

    def start_pass(self, names: list[str]) -> None:
        """A pool begins with these shards; what earlier pools had in their hands is forgotten."""
        now = self._clock()
        self._draining, self._waiting, self._last_begin = False, set(names), now
        self._opened = 0
        for forgotten in (self._died_in_pass, self._in_flight, self._workers, self._refusals):
            forgotten.clear()

    def drain(self) -> None:
        """From now on, shards are handed back instead of begun."""
        self._draining = True

    def open(self, worker: str, host: str) -> None:
        """A worker has all that it needs."""
        now = self._clock()
        if not self._opened:
            self._meter = Meter(now)  # the time that workers took to start is not theirs
        self._opened += 1
        self._workers[worker] = _Worker(host, Meter(now), now)

    def refuse(self, host: str, reason: str, fatal: Exception | None) -> None:
        """A worker could not open what it needs; `fatal` is an error that would meet every other worker, too."""
        self._refusals.append(f"{host}: {reason}")
        if fatal is not None:
            self._fatal = self._fatal or fatal
            self._draining = True

    def begin(self, name: str, worker: str, host: str) -> Verdict:
        """A worker is about to make a shard."""
        now = self._clock()
        if self._in_flight.pop((name, worker), None) is not None:  # Ray gave it to the same worker after a restart
            self._died_in_pass[name] = self._died_in_pass.get(name, 0) + 1
            self._fail(name, host, PROCESS_DIED)
        if name in self._settled:
            return "drop"
        if self._draining or self._died_in_pass.get(name, 0) > _RETRIES_IN_PLACE:
            self._waiting.discard(name)
            return "later"
        self._waiting.discard(name)
        self._last_begin = now
        self._in_flight[name, worker] = InFlight(name, worker, host, now, now)
        return "make"

    def beat(self, worker: str, name: str | None, images: int) -> bool:
        """A sign of life, with the images done since the last one. Returns whether `name` is settled by another."""
        now = self._clock()
        known = self._workers.get(worker)
        if known is not None:
            known.heard = now
            known.meter.add(images, now)
        self._meter.add(images, now)
        shard = self._in_flight.get((name, worker)) if name is not None else None
        if shard is not None and images:
            shard.images += images
            shard.advanced = now
        return name in self._settled

    def finish(self, name: str, worker: str, facts: dict[str, Any]) -> None:
        """A worker has made a shard."""
        now = self._clock()
        shard = self._in_flight.pop((name, worker), None)
        if shard is not None:
            self._seconds.append(now - shard.began)
        if name not in self._settled:
            self._settle(Result(name, made=True, facts=facts, host=shard.host if shard else ""))

    def leave(self, name: str, worker: str) -> None:
        """A worker has dropped a shard that another one made."""
        self._in_flight.pop((name, worker), None)

    def fail(self, name: str, worker: str, host: str, reason: str) -> None:
        """A try at a shard failed."""
        self._in_flight.pop((name, worker), None)
        self._fail(name, host, reason)

    def _fail(self, name: str, host: str, reason: str) -> None:
        if name in self._settled:
            return
        reasons = self._failures.setdefault(name, [])
        reasons.append(reason)
        if len(reasons) >= self._max_attempts:
            self._settle(Result(name, made=False, reasons=tuple(reasons), host=host))

    def _settle(self, result: Result) -> None:
        self._settled.add(result.name)
        self._waiting.discard(result.name)
        self._results.append(result)

    def report(self, known: int) -> Report:
        """How things stand, with the results from number `known` on."""
        now = self._clock()
        alive = {key: worker for key, worker in self._workers.items() if now - worker.heard < ALIVE_SECONDS}
        return Report(
            ledger=self._made_at,
            now=now,
            results=tuple(self._results[known:]),
            in_flight=tuple(shard for shard in self._in_flight.values() if shard.name not in self._settled),
            workers=tuple(WorkerRate(key, worker.host, worker.meter.rate(now)) for key, worker in alive.items()),
            waiting=len(self._waiting),
            last_begin=self._last_begin,
            images_per_second=self._meter.rate(now),
            median_seconds=statistics.median(self._seconds) if self._seconds else None,
            refused=len(self._refusals),
            refusals=tuple(dict.fromkeys(self._refusals))[-3:],
            opened=self._opened,
            fatal=self._fatal,
        )


def slowest(workers: Sequence[WorkerRate]) -> tuple[WorkerRate, float] | None:
    """The slowest worker and the median rate, if it has less than half of that."""
    if len(workers) < 2:
        return None
    median = statistics.median(worker.images_per_second for worker in workers)
    last = min(workers, key=lambda worker: worker.images_per_second)
    return (last, median) if last.images_per_second < _SLOW * median else None
