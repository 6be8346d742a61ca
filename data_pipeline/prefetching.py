"""Work ahead of the consumer, in one background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
_POLL_SECONDS = 0.2


def prefetch(items: Iterable[_Item], depth: int = 2) -> Iterator[_Item]:
    """The same items in the same order, with up to `depth` of them made ahead in a thread.

    An exception of the source is raised where its item would have come. The thread ends with the iterator, also when
    the consumer stops early.
    """
    results: queue.Queue[tuple[bool, _Item | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, _Item | BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                results.put(entry, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # handed to the consumer, which raises it
            put((False, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = results.get()
            if is_item:
                yield value  # type: ignore[misc]
            elif value is None:
                return
            else:
                assert isinstance(value, BaseException)
                raise value
    finally:
        stopped.set()
        thread.join()
