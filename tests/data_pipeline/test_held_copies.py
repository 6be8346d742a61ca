"""Copies that a process holds: opened ahead, let go, and tried again where they failed ahead."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from data_pipeline.errors import FoldtrainError
from data_pipeline.node.held_copies import HeldCopies


class Copy:
    def __init__(self, number: int) -> None:
        self.number = number


def test_what_failed_ahead_is_tried_again_when_it_is_asked_for() -> None:
    tries: list[str] = []

    def open_copy(number: int) -> Copy:
        tries.append(threading.current_thread().name)
        if len(tries) == 1:
            raise FoldtrainError("no room yet")
        return Copy(number)

    held = HeldCopies(open_copy, threads=1)
    held.keep([5])
    assert held.get(5).number == 5
    assert held.get(5) is held.get(5)
    assert [name == threading.current_thread().name for name in tries] == [False, True]


def test_what_fails_twice_is_raised() -> None:
    def open_copy(number: int) -> Copy:
        raise FoldtrainError(f"{number} is damaged")

    held = HeldCopies(open_copy)
    held.keep([5])
    with pytest.raises(FoldtrainError, match="5 is damaged"):
        held.get(5)


@pytest.mark.slow
def test_copies_are_let_go_when_they_are_kept_no_longer() -> None:
    made: dict[int, weakref.ref[Copy]] = {}

    def open_copy(number: int) -> Copy:
        copy = Copy(number)
        made[number] = weakref.ref(copy)
        return copy

    held = HeldCopies(open_copy, spare=1)
    held.keep([1, 2])
    for number in (1, 2, 7, 8):  # 7 and 8 were not announced: one of them is held at a time
        held.get(number)
    gc.collect()
    assert {number for number, copy in made.items() if copy() is not None} == {1, 2, 8}
    held.keep([2, 3])
    held.get(3)
    gc.collect()
    assert {number for number, copy in made.items() if copy() is not None} == {2, 3}


def test_the_threads_end_with_their_owner() -> None:
    held = HeldCopies(Copy, threads=3)
    held.keep([1])
    held.get(1)
    threads = [thread for thread in threading.enumerate() if thread.name == "fetch copies"]
    assert len(threads) >= 3
    mine = threads[-3:]
    del held
    gc.collect()
    for thread in mine:
        thread.join(5)
    assert not any(thread.is_alive() for thread in mine)
