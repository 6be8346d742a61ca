"""How fast a process may send requests to a bucket: a limit that the user sets, and one that the server asks for.

    FOLDTRAIN_STORAGE_WRITES_PER_SECOND   writes per process, bucket and first folder; no limit by default
    FOLDTRAIN_STORAGE_BYTES_PER_SECOND    bytes of those writes; no limit by default

S3 serves some 3,500 writes and 5,500 reads per second and prefix, and answers 503 SlowDown until it has grown
(ray#36690). Each SlowDown halves the rate; each success raises it a little (additive increase, multiplicative
decrease), until the rate is twice what was too much and the limit is given up.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable

from data_pipeline.errors import UsageError

WRITES_VARIABLE = "FOLDTRAIN_STORAGE_WRITES_PER_SECOND"
BYTES_VARIABLE = "FOLDTRAIN_STORAGE_BYTES_PER_SECOND"

BURST_SECONDS = 1.0
"""What an idle bucket saves up: so many seconds of its rate may go out at once."""
RECOVERY_SECONDS = 30.0
"""A rate that was lowered is back at what it was after at most so many seconds of successes."""
SLOWEST = 25.0
"""Requests per second below which no SlowDown pushes the rate: a hundred processes at it are below S3's limit."""


class TokenBucket:
    """Lets `rate` units per second through, on average; what comes at once after idleness is bounded.

    Args:
        rate: units per second.
        now: a clock's reading, in seconds.
    """

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._level = self._room
        self._time = now

    @property
    def _room(self) -> float:
        return max(1.0, self.rate * BURST_SECONDS)

    def take(self, amount: float, now: float) -> float:
        """Take units out, whether they are there or not. Returns the seconds to wait before they may be used."""
        self._level = min(self._room, self._level + (now - self._time) * self.rate) - amount
        self._time = now
        return max(0.0, -self._level / self.rate)


class Pacer:
    """The pace of one process towards one prefix of a bucket. Safe to use from many threads.

    Args:
        requests: most requests per second; None for no limit.
        bytes_: most bytes per second; None for no limit.
        clock: seconds from any origin.
    """

    def __init__(
        self, requests: float | None = None, bytes_: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        now = clock()
        self._ceiling = requests
        self._requests = TokenBucket(requests, now) if requests else None
        self._bytes = TokenBucket(bytes_, now) if bytes_ else None
        self._too_fast = 0.0
        self._slowed_at = -1e9
        self._second, self._sent, self._sent_before = now, 0, 0

    @property
    def rate(self) -> float | None:
        """Requests per second that may go out now; None for no limit."""
        return self._requests.rate if self._requests else None

    def reserve(self, amount: int) -> float:
        """Announce a request that carries so many bytes. Returns the seconds to wait before it is sent."""
        with self._lock:
            now = self._clock()
            self._count(now)
            waits = [bucket.take(units, now) for bucket, units in self._limits(amount)]
            return max(waits, default=0.0)

    def slowed(self) -> None:
        """The server asked for fewer requests: halve the rate, at most once a second, since many fail together."""
        with self._lock:
            now = self._clock()
            if now - self._slowed_at < 1.0:
                return
            self._slowed_at = now
            rate = self._requests.rate if self._requests else float(max(self._sent, self._sent_before, SLOWEST))
            self._too_fast = max(self._too_fast, rate)
            self._set_rate(max(min(rate, SLOWEST), rate / 2), now)

    def succeeded(self) -> None:
        """A request was served: raise a lowered rate a little."""
        with self._lock:
            if not self._too_fast or self._requests is None:
                return
            now, rate = self._clock(), self._requests.rate
            raised = rate + self._too_fast / RECOVERY_SECONDS / rate
            if self._ceiling is not None and raised >= self._ceiling:
                self._too_fast = 0.0
                self._set_rate(self._ceiling, now)
            elif self._ceiling is None and raised >= 2 * self._too_fast:
                self._too_fast, self._requests = 0.0, None
            else:
                self._set_rate(raised, now)

    def _limits(self, amount: int) -> list[tuple[TokenBucket, float]]:
        pairs = [(self._requests, 1.0), (self._bytes, float(amount))]
        return [(bucket, units) for bucket, units in pairs if bucket is not None]

    def _set_rate(self, rate: float, now: float) -> None:
        if self._requests is None:
            self._requests = TokenBucket(rate, now)
        else:
            self._requests.take(0, now)
            self._requests.rate = rate

    def _count(self, now: float) -> None:
        """How many requests went out in this second and in the one before it."""
        if now - self._second >= 1.0:
            self._sent_before = self._sent if now - self._second < 2.0 else 0
            self._second, self._sent = now, 0
        self._sent += 1


def pacer_of(uri: str, *, writes: bool) -> Pacer:
    """This process's pacer for what is sent to the bucket and first folder of a URI; reads and writes have one each.

    Raises:
        UsageError: if a limit in the environment is no positive number.
    """
    scheme, _, path = uri.partition("://")
    return _pacer(scheme, "/".join(path.split("/")[:-1][:2]), writes, os.getpid())


@functools.cache
def _pacer(scheme: str, prefix: str, writes: bool, pid: int) -> Pacer:  # noqa: ARG001 - one each
    return Pacer(_limit(WRITES_VARIABLE), _limit(BYTES_VARIABLE)) if writes else Pacer()


def _limit(variable: str) -> float | None:
    return positive_number(variable) if os.environ.get(variable) else None


def positive_number(variable: str) -> float:
    """An environment variable as a number.

    Raises:
        UsageError: if it is no number, or is below zero.
    """
    text = os.environ[variable]
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(f"the environment variable {variable} is {text!r}: set it to a positive number, or unset it")
    return number
