"""Working ahead changes nothing but the time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from data_pipeline.loading.prefetching import prefetch


def test_items_arrive_in_order() -> None:
    assert list(prefetch(range(100), depth=3)) == list(range(100))


def test_an_exception_arrives_where_its_item_would_have_come() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken source")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken source"):
        next(items)


def test_the_thread_ends_when_the_consumer_stops_early() -> None:
    made: list[int] = []
    items = prefetch((made.append(number) or number for number in range(10**9)), depth=2)
    assert next(items) == 0
    items.close()
    assert len(made) <= 4
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
