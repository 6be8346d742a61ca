"""Says what a process is waiting for, when it waits too long.

Whoever reads from storage notes what it reads (`reading`). A `Watchdog` guards the wait for a batch, a step or a start:
once it has lasted too long, the stacks of all threads go to stderr and the report names the shards that are being read,
and for how long.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data_pipeline.text.printable import printable

LONG = 5.0
"""A start or a step is late after so many times the seconds of a batch: networks are built, compiled and loaded."""
_reads: dict[tuple[int, str], float] = {}
"""When each read that is under way began, by thread and name."""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Note that this thread is reading something."""
    entry = (threading.get_ident(), name)
    _reads[entry] = time.monotonic()
    try:
        yield
    finally:
        _reads.pop(entry, None)


def pending_reads() -> list[tuple[str, float]]:
    """What is being read now and for how many seconds, the longest first."""
    now = time.monotonic()
    return sorted(((name, now - since) for (_, name), since in _reads.copy().items()), key=lambda read: -read[1])


def describe_wait(what: str, seconds: float) -> str:
    """What is late, and what it may be waiting for."""
    reads = ", ".join(f"{name} (for {age:.0f} s)" for name, age in pending_reads())
    return f"{what} is late: {seconds:.0f} s so far; being read: {reads or 'nothing'}"


def print_late(wait: str) -> None:
    """On stderr, where the stacks go, too."""
    print(printable(wait), file=sys.stderr, flush=True)  # noqa: T201


class Watchdog:
    """Reports waits that take longer than `seconds`, again and again while they last.

    Args:
        seconds: how long a wait may take.
        report: called from the watchdog's own thread with `describe_wait`.
        dump: writes the stacks of all threads.
    """

    def __init__(
        self,
        seconds: float,
        report: Callable[[str], None],
        dump: Callable[[], None] = lambda: faulthandler.dump_traceback(sys.__stderr__ or 2),
    ) -> None:
        self._seconds, self._report, self._dump = seconds, report, dump
        self._changed = threading.Condition()
        self._wait: tuple[str, float, float] | None = None  # what, since when, how long at most
        self._closed = False
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def waiting(self, what: str, times: float = 1.0) -> Iterator[None]:
        """Guard a wait, which may take so many times `seconds`."""
        self._wait = (what, time.monotonic(), times * self._seconds)
        try:
            yield
        finally:
            self._wait = None  # the thread finds out by itself: waking it would cost every step

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        reported: tuple[str, float, float] | None = None
        due = 0.0
        while not self._closed:
            with self._changed:
                self._changed.wait(min(1.0, self._seconds / 4))
            wait, now = self._wait, time.monotonic()
            if wait is None:
                continue
            if wait != reported:
                due = wait[1] + wait[2]
            if now >= due:
                reported, due = wait, now + wait[2]
                self._dump()
                self._report(describe_wait(wait[0], now - wait[1]))
