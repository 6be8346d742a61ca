"""A reader of metrics on a thread of its own, behind a queue that never makes the run wait."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

_LOG = logging.getLogger(__name__)
QUEUE = 1000
"""Records that a reader may be behind."""


class Reader(Protocol):
    """Where records go. It may be slow, hang, or raise; it is made, used and closed on one thread."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record of metrics.jsonl."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class Follower:
    """Hands records to a reader in the background.

    A record that the reader does not take, because it is behind, raised or never came up, is dropped and counted.

    Args:
        name: of the reader, for people.
        reader: makes it, on the follower's thread.
        most: records that it may be behind.
    """

    def __init__(self, name: str, reader: Callable[[], Reader], most: int = QUEUE) -> None:
        self.name = name
        self._make = reader
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue(most)
        self._given = self._taken = 0
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"metrics to {name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that the reader has not taken, so far."""
        return self._given - self._taken

    def write(self, record: dict[str, Any]) -> None:
        """Hand over a record; returns at once."""
        self._given += 1
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            return

    def finish(self) -> None:
        """Say that no record comes any more; returns at once."""
        self._finished.set()

    def join(self, seconds: float) -> None:
        """Wait until the reader has taken all records and is closed, but not longer than `seconds`."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            reader = self._make()
        except Exception:
            _LOG.exception("%s does not start; the run goes on, metrics.jsonl has everything", self.name)
            return
        failures = 0
        while (record := self._next()) is not None:
            try:
                reader.write(record)
                self._taken += 1
            except Exception as error:
                failures += 1
                if failures == 1:
                    _LOG.exception("%s lost a record; the run goes on, metrics.jsonl has everything", self.name)
                else:
                    _LOG.debug("%s lost a record: %s", self.name, error)
        try:
            reader.close()
        except Exception:
            _LOG.exception("%s did not close; metrics.jsonl has everything", self.name)

    def _next(self) -> dict[str, Any] | None:
        """The next record; None after the last."""
        while True:
            try:
                return self._queue.get(timeout=0.2)
            except queue.Empty:
                if self._finished.is_set() and self._queue.empty():
                    return None
