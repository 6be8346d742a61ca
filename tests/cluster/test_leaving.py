"""Which workers leave a pool that shrinks: those that cost least, so that whole nodes become free."""

from __future__ import annotations

import pytest

from cluster.pool.leaving import Member, leaving
from cluster.pool.shard_ledger import Arrival


def member(worker: str, node: str | None, at_work: bool = True) -> Member:
    return Member(worker, Arrival(node, at_work) if node else None)


def test_those_that_wait_for_room_leave_first_then_those_that_load_and_the_newest_of_them_first() -> None:
    pool = [member("a", "n1"), member("b", "n1", at_work=False), member("c", None), member("d", None)]
    assert leaving(pool, 4, here="") == ["d", "c", "b", "a"]


def test_the_node_with_the_fewest_workers_is_emptied_first() -> None:
    pool = [member(name, node) for name, node in zip("abcdef", ["n1", "n1", "n2", "n1", "n3", "n3"], strict=True)]
    assert leaving(pool, 3, here="") == ["c", "f", "e"]


def test_of_nodes_with_as_many_workers_the_one_that_joined_last_is_emptied_whole() -> None:
    pool = [member(name, node) for name, node in zip("abcd", ["n1", "n2", "n1", "n2"], strict=True)]
    assert leaving(pool, 2, here="") == ["d", "b"]


def test_workers_on_the_node_of_the_driver_leave_last() -> None:
    pool = [member("a", "head"), member("b", "n1"), member("c", "n1")]
    assert leaving(pool, 2, here="head") == ["c", "b"]


@pytest.mark.parametrize(("count", "gone"), [(-1, 0), (0, 0), (2, 2), (9, 3)])
def test_no_more_leave_than_are_asked_to(count: int, gone: int) -> None:
    assert len(leaving([member(name, "n1") for name in "abc"], count, here="")) == gone
