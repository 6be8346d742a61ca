"""A worker of the pool, which makes planned shards: it opens what it needs once, then goes on shard by shard."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from cluster.session.worker_output import keep_own_warnings
from data_pipeline.errors import CorruptShardError, FoldtrainError, UsageError
from foldtrain import refusal

Advance = Callable[[int], None]
"""Called between batches with the number of images done since the last call."""
MakeShard = Callable[[int, Advance], dict[str, Any]]
"""Makes and commits the shard of this number in the plan, and says what the driver is to know of it. The shard's bytes
follow from the plan alone, so that it does not matter how often or where it is made."""

_BEAT_SECONDS = 1.0
_OPEN_AGAIN_SECONDS = 10.0


class ShardWork(Protocol):
    """What a pool does. It is pickled and sent to every worker: it names a plan, and has nothing for each shard."""

    def open(self, threads: int) -> MakeShard:
        """Build what all shards need (a network, an index of images), once in a worker that has so many CPUs.

        Raises:
            UsageError: if something is wrong that concerns every shard; it stops the run.
        """


class ShardDroppedError(Exception):
    """The shard that is being made has been committed by another worker."""


class ShardWorker:
    """Makes shards, and keeps the ledger (an actor of class Ledger) informed.

    Args:
        work: what it does.
        ledger: whom it asks.
        threads: that it may keep busy.
        name: of this worker, which it keeps when Ray starts it again.
    """

    def __init__(self, work: ShardWork, ledger: Any, threads: int, name: str) -> None:
        import ray

        keep_own_warnings()
        self._ledger, self._ask = ledger, ray.get
        self.id, self.host = name, socket.gethostname()
        self._ask(ledger.arrive.remote(self.id, str(ray.get_runtime_context().get_node_id())))
        self._lock = threading.Lock()
        self._number: int | None = None
        self._images = 0
        self._dropped = False
        self._make = self._open(work, threads)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def work(self) -> None:
        """Make shards until the ledger has none for this worker any more."""
        while self._make is not None:
            number = self._ask(self._ledger.take.remote(self.id, self.host))
            if number is None:
                break
            self._attempt(self._make, number)

    def make_one(self, number: int) -> None:
        """Make this shard, if the ledger says so; all that matters is told to the ledger."""
        if self._make is not None and self._ask(self._ledger.begin.remote(number, self.id, self.host)):
            self._attempt(self._make, number)

    def _attempt(self, make: MakeShard, number: int) -> None:
        with self._lock:
            self._number, self._dropped = number, False
        try:
            facts = make(number, self._advance)
        except ShardDroppedError:
            self._ask(self._ledger.leave.remote(number, self.id))
        except Exception as error:  # whatever it is, it is counted and shown
            if isinstance(error, UsageError) and not isinstance(error, CorruptShardError):
                self._ask(self._ledger.refuse.remote(self.host, str(error), error))  # no other worker can do better
            self._ask(self._ledger.fail.remote(number, self.id, self.host, in_words(error)))
        else:
            with contextlib.suppress(Exception):  # only the count of images
                self._report()
            self._ask(self._ledger.finish.remote(number, self.id, facts))
        finally:
            with self._lock:
                self._number = None

    def _advance(self, images: int) -> None:
        with self._lock:
            self._images += images
            dropped = self._dropped
        if dropped:
            raise ShardDroppedError(self._number)

    def _open(self, work: ShardWork, threads: int) -> MakeShard | None:
        """Open the work; None once it is known that no worker can. A node that cannot, gets no shards meanwhile."""
        while True:
            try:
                if reason := refusal():
                    raise UsageError(f"on {self.host}: {reason}")  # noqa: TRY301 - as an error of the work
                make = work.open(threads)
            except UsageError as error:
                self._ask(self._ledger.refuse.remote(self.host, str(error), error))
                return None
            except Exception as error:  # a full device, storage that is away: it may pass, or other nodes do the work
                self._ask(self._ledger.refuse.remote(self.host, in_words(error), None))
                time.sleep(_OPEN_AGAIN_SECONDS)
            else:
                self._ask(self._ledger.open.remote(self.id, self.host))
                return make

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            with contextlib.suppress(Exception):  # the ledger may be away for a moment; the shard does not depend on it
                self._report()

    def _report(self) -> None:
        """Tell the ledger how far the shard is, and hear whether another worker was faster."""
        with self._lock:
            number, images, self._images = self._number, self._images, 0
        dropped = self._ask(self._ledger.beat.remote(self.id, number, images), timeout=30)
        with self._lock:
            self._dropped = self._dropped or (bool(dropped) and number == self._number)


def in_words(error: Exception) -> str:
    """An error for a list of reasons: the user's errors speak for themselves, others need their kind."""
    return str(error) if isinstance(error, FoldtrainError) else f"{type(error).__name__}: {error}"
