"""Copies that one process holds open at a time, some of them opened ahead of their use.

What is held is not evicted from the node's cache (node_cache.py); what is let go stays there until the room is needed.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

from data_pipeline.errors import FoldtrainError

_Copy = TypeVar("_Copy")
_Work = tuple[int, "Future[_Copy]"] | None


class HeldCopies(Generic[_Copy]):
    """The copies of numbered things (shards).

    Args:
        open_copy: of a number; it must not refer to this object.
        threads: that open copies ahead. They are daemons: a fetch under way does not keep a process from ending.
        spare: most copies that are held though `keep` did not name them.
    """

    def __init__(self, open_copy: Callable[[int], _Copy], threads: int = 4, spare: int = 2) -> None:
        self._open, self._threads, self._spare = open_copy, threads, spare
        self._lock = threading.Lock()
        self._held: dict[int, Future[_Copy]] = {}
        self._extra: dict[int, _Copy] = {}
        self._work: queue.SimpleQueue[_Work[_Copy]] | None = None

    def keep(self, numbers: Iterable[int]) -> None:
        """Open these ahead, in their order, and let go of all others."""
        wanted = dict.fromkeys(numbers)
        with self._lock:
            for number in self._held.keys() - wanted.keys():
                self._held.pop(number).cancel()
            self._extra.clear()
            for number in wanted:
                if _failed(self._held.get(number)):
                    future: Future[_Copy] = Future()
                    self._held[number] = future
                    self._queue().put((number, future))

    def get(self, number: int) -> _Copy:
        """One copy, as soon as it is there. What failed ahead is tried again here.

        Raises:
            Exception: whatever `open_copy` raises.
        """
        with self._lock:
            future = self._held.get(number)
        if future is None:
            return self._get_extra(number)
        try:
            return future.result()
        except FoldtrainError:
            copy = self._open(number)
        fresh: Future[_Copy] = Future()
        fresh.set_result(copy)
        with self._lock:
            if self._held.get(number) is future:
                self._held[number] = fresh
        return copy

    def numbers(self) -> set[int]:
        """Those that are held, or are being opened."""
        with self._lock:
            return {*self._held, *self._extra}

    def _get_extra(self, number: int) -> _Copy:
        with self._lock:
            if number in self._extra:
                return self._extra[number]
        copy = self._open(number)
        with self._lock:
            self._extra[number] = copy
            while len(self._extra) > self._spare:
                self._extra.pop(next(iter(self._extra)))
        return copy

    def _queue(self) -> queue.SimpleQueue[_Work[_Copy]]:
        if self._work is None:
            work: queue.SimpleQueue[_Work[_Copy]] = queue.SimpleQueue()
            for _ in range(self._threads):
                threading.Thread(target=_serve, args=(work, self._open), name="fetch copies", daemon=True).start()
            weakref.finalize(self, _end, work, self._threads)
            self._work = work
        return self._work


def _failed(future: Future[_Copy] | None) -> bool:
    """Whether there is nothing, or what was begun came to nothing."""
    return future is None or (future.done() and future.exception() is not None)


def _serve(work: queue.SimpleQueue[_Work[_Copy]], open_copy: Callable[[int], _Copy]) -> None:
    while True:
        item = work.get()
        if item is None:
            return
        number, future = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(open_copy(number))
            except BaseException as error:  # handed to whoever asks for the copy
                future.set_exception(error)
        del item, future


def _end(work: queue.SimpleQueue[_Work[_Copy]], threads: int) -> None:
    for _ in range(threads):
        work.put(None)
