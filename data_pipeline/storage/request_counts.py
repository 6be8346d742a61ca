"""How many requests this process sent to remote storage, by kind.

    get, head, put, list, delete   of objects
    upload                         of uploads in parts: begin, part, completion, abort

Every try counts, also one that fails. The clients count (`object_clients`), so that nothing is sent uncounted.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def count(kind: str, number: int = 1) -> None:
    """Note that a request is sent, or several."""
    with _lock:
        _counts[kind] += number


def requests() -> Counter[str]:
    """Requests by kind since the process began, of all threads."""
    with _lock:
        return Counter(_counts)


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Gives a counter that has, once the block has ended, the requests that the process sent in it."""
    before, found = requests(), Counter[str]()
    try:
        yield found
    finally:
        found.update(requests() - before)
