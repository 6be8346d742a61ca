"""What happens to the shards of a run: who makes which, how often each failed, how fast it goes. No Ray in here.

One object of this class lives in an actor beside the driver (cluster/pool/shard_pool.py). Workers ask it for a shard,
by its number in the plan, and tell it when they have ended one, so that a shard whose process is gone is known, too. Of
a shard it keeps its number, and what making it gave until the driver has heard of it.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
"""Of shards in their plan, ascending."""

WINDOW_SECONDS = 60.0
"""Rates are those of the last minute."""
ALIVE_SECONDS = 20.0
"""A worker that has not been heard of for so long is not counted as alive."""
_RETRIES_IN_PLACE = 1
"""Times that a shard whose process died is tried again where Ray restarts it; from then on another worker gets it."""
_REMEMBERED = 1001
"""Shards whose median time is taken, the last ones; and reasons of workers that could not start."""
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

    number: int
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
class Arrival:
    """A worker that has a process."""

    node: str
    """Ray's id of its node."""
    at_work: bool
    """Whether it has opened what its shards need, or Ray started it again with a shard in hand."""


@dataclass(frozen=True)
class Result:
    """A shard that is settled: made, or tried often enough."""

    number: int
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
    """What was settled since the last report that the driver has seen."""
    in_flight: tuple[InFlight, ...]
    workers: tuple[WorkerRate, ...]
    """Those that are alive."""
    waiting: int
    """Shards of this pass that nobody has begun."""
    last_begin: float
    images_per_second: float
    median_seconds: float | None
    """Of the shards that were made last."""
    arrived: dict[str, Arrival]
    """Workers of this pass that have a process."""
    refused: int
    """Times that one could not open what it needs."""
    refusals: tuple[str, ...]
    """Why, newest last."""
    opened: int
    """Times that a worker of this pass opened what it needs."""
    fatal: Exception | None
    """An error of the user that concerns all shards."""


def to_ranges(numbers: Numbers) -> list[tuple[int, int]]:
    """Ascending numbers as ranges [start, stop): what travels of them."""
    if not len(numbers):
        return []
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts, stops = numbers[np.r_[0, cuts]], numbers[np.r_[cuts - 1, len(numbers) - 1]] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


class Ledger:
    """Decides who makes a shard, and counts.

    Args:
        max_attempts: failures after which a shard is set aside.
        clock: seconds.
    """

    def __init__(self, max_attempts: int, clock: Callable[[], float] = time.monotonic) -> None:
        now = clock()
        self._clock, self._max_attempts, self._made_at = clock, max_attempts, now
        self._is_over = False
        self._pass: Numbers = np.empty(0, np.int64)
        self._next = 0
        """Where in the pass the next shard is."""
        self._begun_early: set[int] = set()
        """Shards from there on that nobody needs to begin any more."""
        self._settled: set[int] = set()
        self._results: list[Result] = []
        self._told = 0
        """Results that the driver has seen; they are not kept."""
        self._failures: dict[int, list[str]] = {}
        self._died_in_pass: dict[int, int] = {}
        self._in_flight: dict[str, InFlight] = {}
        self._workers: dict[str, _Worker] = {}
        self._arrived: dict[str, Arrival] = {}
        self._leaving: set[str] = set()
        self._meter = Meter(now)
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._last_begin = now
        self._refused = 0
        self._refusals: dict[str, None] = {}
        self._opened = 0
        self._fatal: Exception | None = None

    def start_pass(self, ranges: Iterable[tuple[int, int]]) -> None:
        """A pool begins with the shards of these ranges; what earlier pools had in their hands is forgotten."""
        parts = [np.arange(start, stop, dtype=np.int64) for start, stop in ranges]
        self._pass, self._next = np.concatenate([np.empty(0, np.int64), *parts]), 0
        self._is_over, self._last_begin, self._opened, self._refused = False, self._clock(), 0, 0
        self._arrived.clear()
        for forgotten in (self._begun_early, self._died_in_pass, self._in_flight, self._workers, self._refusals):
            forgotten.clear()
        self._leaving.clear()

    def arrive(self, worker: str, node: str) -> None:
        """A worker has a process, on this node."""
        self._arrived[worker] = Arrival(node, at_work=worker in self._in_flight)

    def dismiss(self, workers: Sequence[str]) -> list[str]:
        """These workers begin no shard any more. Returns those of them that may have one in hand."""
        self._leaving |= set(workers)
        return [worker for worker in workers if worker in self._arrived and self._arrived[worker].at_work]

    def open(self, worker: str, host: str) -> None:
        """A worker has all that it needs."""
        now = self._clock()
        if not self._opened:
            self._meter = Meter(now)  # the time that workers took to start is not theirs
        self._opened += 1
        if worker in self._arrived:
            self._arrived[worker] = replace(self._arrived[worker], at_work=True)
        self._workers[worker] = _Worker(host, Meter(now), now)

    def refuse(self, host: str, reason: str, fatal: Exception | None) -> None:
        """A worker could not open what it needs; `fatal` is an error that would meet every other worker, too."""
        self._refused += 1
        if len(self._refusals) < _REMEMBERED:
            self._refusals[f"{host}: {reason}"] = None
        if fatal is not None:
            self._fatal = self._fatal or fatal
            self._is_over = True

    def take(self, worker: str, host: str) -> int | None:
        """The shard that a worker is to make now; None if there is none for it in this pass any more."""
        dead = self._in_flight.pop(worker, None)
        if dead is not None:  # Ray started it again
            deaths = self._died_in_pass[dead.number] = self._died_in_pass.get(dead.number, 0) + 1
            self._fail(dead.number, host, PROCESS_DIED)
            if worker in self._leaving:
                return None
            if deaths <= _RETRIES_IN_PLACE and self.begin(dead.number, worker, host):
                return dead.number
        if worker in self._leaving:
            return None
        while self._next < len(self._pass) and not self._is_over:
            number = int(self._pass[self._next])
            self._next += 1
            if number in self._begun_early:
                self._begun_early.remove(number)
            elif self.begin(number, worker, host):
                return number
        return None

    def begin(self, number: int, worker: str, host: str) -> bool:
        """A worker is about to make this very shard. Returns whether it should."""
        if number in self._settled or self._is_over:
            return False
        now = self._clock()
        self._need_not_begin(number)
        self._last_begin = now
        self._in_flight[worker] = InFlight(number, worker, host, now, now)
        return True

    def _need_not_begin(self, number: int) -> None:
        place = int(np.searchsorted(self._pass, number))
        if self._next <= place < len(self._pass) and self._pass[place] == number:
            self._begun_early.add(number)

    def beat(self, worker: str, number: int | None, images: int) -> bool:
        """A sign of life, with the images done since the last one. Returns whether `number` is settled by another."""
        now = self._clock()
        known = self._workers.get(worker)
        if known is not None:
            known.heard = now
            known.meter.add(images, now)
        self._meter.add(images, now)
        shard = self._in_flight.get(worker)
        if shard is not None and shard.number == number and images:
            shard.images += images
            shard.advanced = now
        return number in self._settled

    def finish(self, number: int, worker: str, facts: dict[str, Any]) -> None:
        """A worker has made a shard."""
        now = self._clock()
        shard = self._end(number, worker)
        if shard is not None:
            self._seconds.append(now - shard.began)
        if number not in self._settled:
            self._settle(Result(number, made=True, facts=facts, host=shard.host if shard else ""))

    def leave(self, number: int, worker: str) -> None:
        """A worker has dropped a shard that another one made."""
        self._end(number, worker)

    def fail(self, number: int, worker: str, host: str, reason: str) -> None:
        """A try at a shard failed."""
        self._end(number, worker)
        self._fail(number, host, reason)

    def _end(self, number: int, worker: str) -> InFlight | None:
        shard = self._in_flight.get(worker)
        return self._in_flight.pop(worker) if shard is not None and shard.number == number else None

    def _fail(self, number: int, host: str, reason: str) -> None:
        if number in self._settled:
            return
        reasons = self._failures.setdefault(number, [])
        reasons.append(reason)
        if len(reasons) >= self._max_attempts:
            self._settle(Result(number, made=False, reasons=tuple(reasons), host=host))

    def _settle(self, result: Result) -> None:
        self._settled.add(result.number)
        self._need_not_begin(result.number)
        self._failures.pop(result.number, None)
        self._results.append(result)

    def report(self, ledger: float, known: int) -> Report:
        """How things stand.

        Args:
            ledger: what the last report said of the ledger that it came from.
            known: results of that ledger that the driver has seen: the report has those after them, and if they were
                this one's, they are forgotten.
        """
        now = self._clock()
        if ledger == self._made_at and known > self._told:
            del self._results[: known - self._told]
            self._told = known
        alive = {key: worker for key, worker in self._workers.items() if now - worker.heard < ALIVE_SECONDS}
        return Report(
            ledger=self._made_at,
            now=now,
            results=tuple(self._results),
            in_flight=tuple(shard for shard in self._in_flight.values() if shard.number not in self._settled),
            workers=tuple(WorkerRate(key, worker.host, worker.meter.rate(now)) for key, worker in alive.items()),
            waiting=len(self._pass) - self._next - len(self._begun_early),
            last_begin=self._last_begin,
            images_per_second=self._meter.rate(now),
            median_seconds=statistics.median(self._seconds) if self._seconds else None,
            arrived=dict(self._arrived),
            refused=self._refused,
            refusals=tuple(self._refusals)[-3:],
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
