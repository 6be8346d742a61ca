"""One copy for all processes of a node: made once, whole or not at all, within a limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.node_cache import NodeCache

spawn = multiprocessing.get_context("spawn")


def fill(draft: Path, content: bytes = b"a") -> None:
    """Content for the whole draft."""
    draft.write_bytes(content * draft.stat().st_size)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_copy_is_made_once(tmp_path: Path) -> None:
    cache, made = NodeCache(str(tmp_path)), []
    for _ in range(3):
        with cache.open("one", 10, lambda draft: (made.append(1), fill(draft))) as file:
            assert file.read() == b"a" * 10
    assert made == [1]


def test_a_copy_may_be_shorter_than_what_was_reserved(tmp_path: Path) -> None:
    with NodeCache(str(tmp_path)).open("one", 100, lambda draft: draft.write_bytes(b"short")) as file:
        assert file.read() == b"short"


def test_a_copy_whose_making_fails_is_not_there(tmp_path: Path) -> None:
    def fail(draft: Path) -> None:
        fill(draft)
        raise ValueError("the source is damaged")

    cache = NodeCache(str(tmp_path))
    with pytest.raises(ValueError, match="damaged"):
        cache.open("one", 10, fail)
    assert not names(tmp_path)
    with cache.open("one", 10, fill) as file:
        assert len(file.read()) == 10


def test_the_least_recently_used_copy_makes_room(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path), limit=30)
    for turn, name in enumerate(("a", "b", "c", "a")):
        cache.open(name, 10, fill).close()
        os.utime(tmp_path / name, (turn, turn))
    cache.open("d", 10, fill).close()
    assert names(tmp_path) == {"a", "c", "d"}


def test_a_copy_in_use_is_not_removed(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path), limit=20)
    with cache.open("a", 10, fill) as used:
        cache.open("b", 10, fill).close()
        cache.open("c", 10, fill).close()
        assert names(tmp_path) == {"a", "c"}
        assert used.read() == b"a" * 10


def test_a_limit_that_leaves_no_room_is_an_error_that_names_it(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path), limit=15)
    with cache.open("a", 10, fill), pytest.raises(UsageError, match=r"data\.reading\.cache_bytes"):
        cache.open("b", 10, fill)
    assert names(tmp_path) == {"a"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    def refuse(draft: Path) -> None:
        raise PermissionError(13, "Permission denied", str(draft))

    with pytest.raises(FoldtrainError, match=r"data\.reading\.cache_dir"):
        NodeCache(str(tmp_path)).open("one", 10, refuse)


def _make_and_count(folder: str, start: object, counter: object) -> None:
    def make(draft: Path) -> None:
        with counter.get_lock():  # type: ignore[attr-defined]
            counter.value += 1  # type: ignore[attr-defined]
        fill(draft)

    start.wait()  # type: ignore[attr-defined]
    with NodeCache(folder).open("one", 1000, make) as file:
        assert file.read() == b"a" * 1000
        start.wait(timeout=60)  # type: ignore[attr-defined]


def test_eight_processes_make_a_copy_once_and_use_it_at_the_same_time(tmp_path: Path) -> None:
    start, counter = spawn.Barrier(8), spawn.Value("i", 0)
    ranks = [spawn.Process(target=_make_and_count, args=(str(tmp_path), start, counter)) for _ in range(8)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 8
    assert counter.value == 1


def _die_while_making(folder: str) -> None:
    def make(draft: Path) -> None:
        draft.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    NodeCache(folder).open("one", 10, make)


def test_a_killed_maker_stops_nobody_and_holds_no_room(tmp_path: Path) -> None:
    maker = spawn.Process(target=_die_while_making, args=(str(tmp_path),))
    maker.start()
    maker.join()
    assert maker.exitcode == -signal.SIGKILL
    NodeCache(str(tmp_path), limit=12).open("another", 10, fill).close()
    with NodeCache(str(tmp_path)).open("one", 10, fill) as file:
        assert file.read() == b"a" * 10
