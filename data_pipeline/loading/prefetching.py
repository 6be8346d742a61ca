"""Work ahead of the consumer, in one background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Key = TypeVar("_Key", bound=Hashable)
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


class Ahead(Generic[_Key, _Item]):
    """What `make` gives for a key, with the keys that are likely to be asked for next made in a thread meanwhile.

    `make` has to be a pure function: what was made in vain is thrown away.

    Args:
        make: of a key.
        depth: most items made ahead; 0 makes each when it is asked for, in the caller's thread.
    """

    def __init__(self, make: Callable[[_Key], _Item], depth: int) -> None:
        self._make, self._depth = make, depth
        self._pool = ThreadPoolExecutor(1, "ahead") if depth else None
        self._made: dict[_Key, Future[_Item]] = {}

    def get(self, key: _Key, later: Sequence[_Key]) -> _Item:
        """The item of `key`; `later` are the keys after it."""
        if self._pool is None:
            return self._make(key)
        wanted = [key, *later[: self._depth]]
        for old in self._made.keys() - set(wanted):
            self._made.pop(old).cancel()
        for one in wanted:
            if one not in self._made:
                self._made[one] = self._pool.submit(self._make, one)
        return self._made.pop(key).result()
