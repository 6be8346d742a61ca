"""One pool of workers that makes planned shards, for ingest and for tokenize: what its driver decides.

    pass: the workers of a pool of the size that is asked for (cluster/pool/ray_pool.py) take every shard that is left
    a shard that fails is tried again in the next pass, by another worker; after max_attempts failures it is set aside
    a shard that takes far longer than the others, when nothing else is left to begin, is given to a second worker, too
    `foldtrain scale` changes the size of a pass: workers join, or some leave after the shard in hand; the others go on

Shards are functions of the plan and commits are atomic, so it does no harm to make one twice. What is committed decides
what is left, so a driver may be killed at any instant. It keeps a bit for each shard; what it does at a tick depends on
the workers and on what was settled since the last one, and not on how many shards are left.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from cluster.pool.pool_progress import PoolProgress
from cluster.pool.ray_pool import PoolSize, RayPool, Resized, WorkerNeeds
from cluster.pool.scale import read_scale
from cluster.pool.shard_ledger import InFlight, Numbers, Report, Result
from cluster.pool.shard_worker import ShardWork
from cluster.session.head_watch import HeadLostError, HeadWatch, watch_head
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.storage.retries import patience
from data_pipeline.text.counted import counted

QUARANTINE = "quarantine"
"""Folder of the records of shards that were set aside, beside the shards."""

_TICK_SECONDS = 0.5
_ASIDE_SECONDS = 5.0
"""How long storage is waited for where the run does not depend on it."""
_CONTROL_SECONDS = 5.0
"""Between two looks at what `foldtrain scale` asks for."""
_SLOW_TIMES = 4
"""A shard is slow when it takes so many times the median, and `patience`."""
_ROOM_SECONDS = 60.0
"""After so long without the fewest workers, the reason is said."""
_MOST_NAMES = 8
"""Of workers that leave, in a line of the terminal."""
_BROKEN_PASSES = 3
"""Failures of Ray's actors themselves, one after the other, that end the run."""


@dataclass(frozen=True)
class PoolSettings:
    """How a pool works."""

    label: str
    """The stage, for messages."""
    output: str
    """URI of the folder where control.json, progress.json and quarantine/ are."""
    size: PoolSize
    """Unless control.json asks for another."""
    needs: WorkerNeeds
    max_attempts: int = 3
    """Failures after which a shard is set aside."""
    patience: float = 300.0
    """Seconds after which a shard may count as slow, or as hung if it got no further: longer than a batch takes, and
    than storage is waited for."""
    require: Callable[[], object] = lambda: None
    """Called again and again; raises if another driver has taken over."""


@dataclass(frozen=True)
class Shards:
    """Shards of a plan that are to be made."""

    numbers: Numbers
    """In the plan, which a worker's `ShardWork` knows."""
    name: Callable[[int], str]
    """Of the shard of a number."""
    images: Callable[[int], int]
    """That it holds."""


OnMade = Callable[[int, dict[str, Any]], None]
"""Called with the number of a shard and what making it gave."""


def make_shards(
    work: ShardWork,
    shards: Shards,
    settings: PoolSettings,
    progress: PoolProgress,
    on_made: OnMade = lambda _number, _facts: None,
) -> None:
    """Make all shards, on the Ray cluster that this process is connected to.

    Args:
        work: what workers do.
        shards: what is left of the plan.
        settings: size and patience.
        progress: where it is shown.
        on_made: called here for each shard that was made; it may raise to stop the run.

    Raises:
        UsageError: what a worker says of something that concerns every shard.
        FoldtrainError: if shards failed too often; all others are made then. If Ray's head is lost.
    """
    with (
        watch_head(lambda: None) as head,
        contextlib.closing(RayPool(work, settings.needs, settings.max_attempts)) as pool,
    ):
        run = Run(pool, shards, settings, progress, on_made, head)
        try:
            run.make_all()
        except (KeyboardInterrupt, SystemExit):
            with contextlib.suppress(Exception):
                run.count_made()
            raise


class Run:
    """The driver's side of a run.

    Args:
        pool: its workers; the caller closes it.
        shards: what is left of the plan.
        settings: size and patience.
        progress: where it is shown.
        on_made: called for each shard that was made.
        head: knows whether Ray's head is lost.
    """

    def __init__(
        self,
        pool: RayPool,
        shards: Shards,
        settings: PoolSettings,
        progress: PoolProgress,
        on_made: OnMade,
        head: HeadWatch,
    ) -> None:
        self._pool, self._shards, self._head = pool, shards, head
        self._settings, self._progress, self._on_made = settings, progress, on_made
        self._is_left = np.zeros(1 + int(shards.numbers.max(initial=-1)), np.bool_)
        self._is_left[shards.numbers] = True
        self._left = len(shards.numbers)
        self._aside: list[Result] = []
        self._known, self._ledger = 0, -1.0
        self._size = settings.size
        self._looked_at = 0.0
        self._idle_since: float | None = None
        self._complaint = ""
        self._old_records = set(storage.list_names(storage.join(settings.output, QUARANTINE)))

    def make_all(self) -> None:
        """Pass by pass, until every shard is made or set aside."""
        broken = 0
        while self._left:
            before = self._left
            try:
                self._pass()
            except _ray_error() as error:
                broken = broken + 1 if self._left == before else 0
                self._progress.say(f"the pool broke ({type(error).__name__}); starting another")
                if broken == _BROKEN_PASSES:
                    from cluster.session.worker_errors import lost_process

                    raise (lost_process(error) or error) from error
            finally:
                self._pool.end_pass()
        if self._aside:
            raise self._failure()

    def count_made(self) -> None:
        """Take what was settled since the last look, so that the last word on progress is right."""
        self._absorb()

    def _pass(self) -> None:
        self._size, self._idle_since = self._asked_size(), None
        if self._size != self._settings.size:
            self._progress.say(
                f"{self._size.in_words}, as `foldtrain scale` asked; the config says {self._settings.size}"
            )
        self._pool.start_pass(np.flatnonzero(self._is_left), min(self._size.most, self._left))
        started, said = time.monotonic(), False
        while True:
            self._settings.require()
            ended = self._pool.wait(_TICK_SECONDS)
            if self._head.lost:
                raise self._without_head()
            report = self._absorb()
            if ended or not self._left:
                return
            self._progress.show(report)
            self._pool.keep(report)
            self._obey_control(report)
            if not said and time.monotonic() - started > _ROOM_SECONDS:
                said = self._say_room(report)
            if self._is_hopeless(report):
                return

    def _without_head(self) -> HeadLostError:
        self._pool.abandon()
        return HeadLostError(
            f"{self._settings.label}: Ray's head (GCS, or the raylet beside it) was lost, killed or cut off. What is "
            "committed stays, and the same command makes the rest; if it joins a cluster (cluster.address, "
            "RAY_ADDRESS), start its head again."
        )

    def _absorb(self) -> Report:
        """Take what was settled since the last look.

        Raises:
            FoldtrainError: an error of the user that concerns every shard.
        """
        report = self._pool.report(self._ledger, self._known)
        if report.ledger != self._ledger:  # a ledger that Ray restarted counts from nothing
            self._ledger, self._known = report.ledger, 0
        if report.fatal is not None:
            raise report.fatal
        if not report.opened and report.refused >= self._settings.max_attempts:
            reasons = "\n".join(f"  {reason}" for reason in report.refusals)
            raise FoldtrainError(f"{self._settings.label}: no worker can start:\n{reasons}")
        self._known += len(report.results)
        for result in report.results:
            self._settle(result)
        return report

    def _settle(self, result: Result) -> None:
        self._pool.end_second_try(result.number)
        if not self._wanted(result.number):
            return
        self._is_left[result.number] = False
        self._left -= 1
        name = self._shards.name(result.number)
        record = _record_name(name)
        uri = storage.join(self._settings.output, QUARANTINE, record)
        if not result.made:
            self._aside.append(result)
            facts = {"shard": name, "reason": result.reasons[-1], "reasons": list(result.reasons)}
            storage.write_json(uri, facts | {"attempts": len(result.reasons), "host": result.host})
            tries = counted(len(result.reasons), "try", "tries")
            self._progress.say(f"{name} is set aside after {tries}: {result.reasons[-1]}")
            return
        if record in self._old_records:
            storage.remove_file(uri)
        self._progress.add(self._shards.images(result.number))
        self._on_made(result.number, result.facts)

    def _wanted(self, number: int) -> bool:
        """Whether a shard is still left."""
        return 0 <= number < len(self._is_left) and bool(self._is_left[number])

    def _asked_size(self) -> PoolSize:
        with patience(_ASIDE_SECONDS):
            asked = read_scale(self._settings.output)
        return PoolSize(*asked) if asked else self._settings.size

    def _obey_control(self, report: Report) -> None:
        """Look now and then whether `foldtrain scale` asks for another size."""
        now = time.monotonic()
        if now - self._looked_at < _CONTROL_SECONDS:
            return
        self._looked_at = now
        try:
            asked = self._asked_size()
        except (OSError, FoldtrainError) as error:  # storage that is away, or a file that was edited, stops no run
            if str(error) != self._complaint:
                self._progress.say(str(error))
            self._complaint = str(error)
            return
        if asked != self._size:
            self._size = asked
            self._progress.say(_in_words(asked, self._pool.resize(min(asked.most, self._left), report)))

    def _say_room(self, report: Report) -> bool:
        fewest = min(self._size.fewest, self._left)
        if len(report.workers) < fewest:
            going_on = f"going on with {len(report.workers)}" if report.workers else "waiting for room"
            asked = f"{self._size.in_words} {'is' if self._size.most == 1 else 'are'} asked for"
            self._progress.say(f"{asked} ({self._settings.needs.against_cluster()}); {going_on}")
        return True

    # --------------------------------------------------------------------------------------------- slow or hung workers

    def _is_hopeless(self, report: Report) -> bool:
        """Give shards of slow or hung workers to others. Returns whether the pass is to be ended, since all hang."""
        tries, limit = self._pool.second_tries, self._settings.patience
        if self._is_idle(report):
            self._progress.say("no worker has anything to do, and not all end (is a node lost?); starting another pool")
            return True
        hung = [shard for shard in report.in_flight if report.now - shard.advanced > limit]
        alone = (number for number in self._overdue(report) if number not in tries)
        for number in islice(alone, max(0, self._size.most - len(tries))):
            self._progress.say(f"{self._shards.name(number)} takes long: a second worker tries it, too")
            self._pool.try_again(number)
        waited = {number for number, since in tries.items() if time.monotonic() - since > limit}
        advancing = {shard.number for shard in report.in_flight} - {shard.number for shard in hung}
        stuck = waited - advancing
        if not stuck or advancing or report.waiting > len(stuck):
            return False
        return self._give_up(hung, stuck, report)

    def _is_idle(self, report: Report) -> bool:
        """Whether for long nothing was begun or left to begin: what failed waits for a pass that does not come."""
        busy = report.in_flight or not report.opened or report.waiting
        self._idle_since = None if busy else self._idle_since or report.now
        return self._idle_since is not None and report.now - self._idle_since > self._settings.patience

    def _give_up(self, hung: Sequence[InFlight], stuck: set[int], report: Report) -> bool:
        """Count a failure of each shard that hangs, and end the pass."""
        limit = self._settings.patience
        for shard in {shard.number: shard for shard in hung}.values():  # one failure each, however many workers tried
            reason = f"it got no further for {report.now - shard.advanced:.0f} s (a batch may take {limit:.0f} s)"
            self._pool.fail(shard, reason)
        names = sorted(self._shards.name(number) for number in stuck)
        self._progress.say(f"{', '.join(names)}: no worker gets any further; starting another pool")
        self._absorb()
        return True

    def _overdue(self, report: Report) -> Iterator[int]:
        """Shards that a second worker should try: nothing else is left to begin, and they are late."""
        limit = self._settings.patience
        if report.waiting:  # normal, unless the workers that should begin them hang
            quiet = report.opened and report.now - max([report.last_begin, *_advances(report)]) > limit
            if not quiet:
                return iter(())
            begun = {shard.number for shard in report.in_flight}
            return (number for number in map(int, np.flatnonzero(self._is_left)) if number not in begun)
        slow = max(limit, _SLOW_TIMES * report.median_seconds) if report.median_seconds is not None else math.inf
        late = [
            shard.number
            for shard in report.in_flight
            if report.now - shard.advanced > limit or report.now - shard.began > slow
        ]
        return (number for number in dict.fromkeys(late) if self._wanted(number))

    def _failure(self) -> FoldtrainError:
        named = "\n".join(
            f"  {self._shards.name(result.number)} "
            f"({counted(len(result.reasons), 'try', 'tries')}, the last on {result.host}): {result.reasons[-1]}"
            for result in self._aside
        )
        count = len(self._aside)
        return FoldtrainError(
            f"{self._settings.label}: {count} shard{'' if count == 1 else 's'} could not be made; all others are "
            f"committed:\n{named}\nThe records are in {storage.join(self._settings.output, QUARANTINE)}. Mend the "
            f"cause and run the same command again: it makes only what is missing"
        )


def _in_words(size: PoolSize, change: Resized) -> str:
    """A change of the size, for the terminal."""
    going = len(change.leaving)
    if change.joining:
        return f"scaling to {size.in_words}: {counted(change.joining, 'more joins', 'more join')}"
    if not going:
        return f"scaling to {size.in_words}"
    names = ", ".join(sorted(change.leaving)[:_MOST_NAMES]) + (", ..." if going > _MOST_NAMES else "")
    verb = "leaves after the shard" if going == 1 else "leave after the shards"
    return f"scaling to {size.in_words}: {going} {verb} in hand ({names}); the others go on"


def _advances(report: Report) -> Iterator[float]:
    return (shard.advanced for shard in report.in_flight)


def _record_name(shard: str) -> str:
    return shard.removesuffix(".tar").replace("/", "-") + ".json"


def _ray_error() -> type[Exception]:
    from ray.exceptions import RayError

    error: type[Exception] = RayError
    return error
