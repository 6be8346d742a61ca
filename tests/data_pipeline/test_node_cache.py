"""One copy for all processes of a node: made once, whole or not at all, within a limit."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.node.copy_seal import SEAL_BYTES, content_bytes
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.node.private_folder import private_folder

spawn = multiprocessing.get_context("spawn")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of another user can only be made by root")
ROOT = Path(__file__).parents[2]
STRANGER = 54_321
"""Another user's number."""


def fill(draft: BinaryIO, content: bytes = b"a") -> None:
    """Content for the whole draft."""
    draft.write(content * os.fstat(draft.fileno()).st_size)


def content(file: BinaryIO) -> bytes:
    """What a copy holds before its seal."""
    return file.read(content_bytes(file))


def read(cache: NodeCache, name: str = "one", size: int = 10) -> bytes:
    """The content of a copy, which is made of the letter a if there is none."""
    with cache.open(name, size, fill) as file:
        return content(file)


def names(cache: NodeCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if not path.name.startswith(".")}


def cache_of(folder: Path, copies: int) -> NodeCache:
    """Has room for so many copies of ten bytes."""
    return NodeCache(str(folder), limit=copies * (10 + SEAL_BYTES))


def test_a_copy_is_made_once(tmp_path: Path) -> None:
    cache, made = NodeCache(str(tmp_path)), []
    for _ in range(3):
        with cache.open("one", 10, lambda draft: (made.append(1), fill(draft))) as file:
            assert content(file) == b"a" * 10
    assert made == [1]


def test_a_copy_may_be_shorter_than_what_was_reserved(tmp_path: Path) -> None:
    def cut(draft: BinaryIO) -> None:
        draft.write(b"short")
        draft.truncate()

    for _ in range(2):
        with NodeCache(str(tmp_path)).open("one", 100, cut) as file:
            assert content(file) == b"short"


def test_a_copy_whose_making_fails_is_not_there(tmp_path: Path) -> None:
    def fail(draft: BinaryIO) -> None:
        fill(draft)
        raise ValueError("the source is damaged")

    cache = NodeCache(str(tmp_path))
    with pytest.raises(ValueError, match="damaged"):
        cache.open("one", 10, fail)
    assert not names(cache)
    assert read(cache) == b"a" * 10


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone", "s3://b/shard"), PermissionError(13, "no", "/shard")])
def test_what_the_source_raises_is_not_taken_for_the_caches_own(tmp_path: Path, error: OSError) -> None:
    def fail(_draft: BinaryIO) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        NodeCache(str(tmp_path)).open("one", 10, fail)
    assert caught.value is error


def test_the_least_recently_used_copy_makes_room(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3)
    for turn, name in enumerate(("a", "b", "c", "a")):
        read(cache, name)
        os.utime(cache.folder / name, (turn, turn))
    read(cache, "d")
    assert names(cache) == {"a", "c", "d"}


def test_using_a_copy_counts_as_use(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 2)
    for turn, name in enumerate(("a", "b")):
        read(cache, name)
        os.utime(cache.folder / name, (turn, turn))
    read(cache, "a")
    read(cache, "c")
    assert names(cache) == {"a", "c"}


def test_a_copy_in_use_is_not_removed(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 2)
    with cache.open("a", 10, fill) as used:
        read(cache, "b")
        read(cache, "c")
        assert names(cache) == {"a", "c"}
        assert content(used) == b"a" * 10


def test_a_limit_that_leaves_no_room_is_an_error_that_names_it(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1)
    with cache.open("a", 10, fill), pytest.raises(UsageError, match=r"data\.reading\.cache_bytes"):
        cache.open("b", 10, fill)
    assert names(cache) == {"a"}


@pytest.mark.parametrize(
    ("total", "free", "room"),
    [(100, 30, 20), (100, 5, 0), (252 * 2**30, 23 * 2**30, 13 * 2**30)],
    ids=["a tenth is kept", "none left", "of a large disk 10 GiB"],
)
def test_without_a_limit_a_tenth_of_the_disk_is_left_free_and_of_a_large_one_10_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, room: int
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=total, free=free)
    monkeypatch.setattr("data_pipeline.node.node_cache.shutil.disk_usage", lambda _: usage)
    assert NodeCache(str(tmp_path)).capacity() == room


def test_no_copy_is_removed_for_one_that_does_not_fit_in_the_end(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3)
    read(cache, "a")
    read(cache, "b")
    with cache.open("c", 10, fill), pytest.raises(UsageError, match="no room"):
        cache.open("large", 200, fill)
    assert names(cache) == {"a", "b", "c"}


def test_a_file_that_goes_while_the_folder_is_listed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(tmp_path, 2)
    read(cache, "a")
    read(cache, "b")
    listed = os.scandir

    class Late:
        """A listing during which another process removes a file."""

        def __init__(self, folder: int) -> None:
            self.entries = list(listed(folder))
            (cache.folder / "a").unlink()

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Late)
    assert read(cache, "c") == b"a" * 10
    monkeypatch.undo()
    assert names(cache) == {"b", "c"}


@pytest.mark.parametrize("folder", ["/dev/null/cache", "/proc/cache"])
def test_a_folder_that_cannot_be_used_is_named_with_its_setting(folder: str) -> None:
    with pytest.raises(FoldtrainError, match=rf"{folder}.*data\.reading\.cache_dir"):
        NodeCache(folder).open("one", 10, fill)


@pytest.mark.parametrize("name", ["../one", "/etc/one", ".room", "", "a" * 300])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="manifest"):
        NodeCache(str(tmp_path)).open(name, 10, fill)
    assert not list(tmp_path.iterdir())


def _cut(path: Path) -> None:
    os.truncate(path, 50)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def _swap(path: Path) -> None:
    other = NodeCache(str(path.parents[1]))
    other.open("two", 10, lambda draft: fill(draft, b"b")).close()
    (path.parent / "two").rename(path)


@pytest.mark.parametrize("damage", [_cut, _empty, _lengthen, _flip, _swap])
@pytest.mark.parametrize("new_process", [True, False])
def test_a_damaged_copy_is_made_again_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, new_process: bool
) -> None:
    cache = NodeCache(str(tmp_path))
    assert read(cache) == b"a" * 10
    damage(cache.folder / "one")  # type: ignore[operator]
    again = NodeCache(str(tmp_path)) if new_process else cache
    with caplog.at_level(logging.WARNING):
        assert read(again) == b"a" * 10
    assert again.damaged == 1
    assert "one is damaged and is made again" in caplog.text
    assert read(again) == b"a" * 10
    assert again.damaged == 1


def test_every_byte_is_compared_once_for_a_process_and_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(NodeCache(str(tmp_path)))
    cache, looked = NodeCache(str(tmp_path)), []
    import data_pipeline.node.node_cache as module

    find = module.find_damage

    def counted(copy: BinaryIO, name: str, *, every_byte: bool) -> str | None:
        looked.append(every_byte)
        return find(copy, name, every_byte=every_byte)

    monkeypatch.setattr(module, "find_damage", counted)
    read(cache)
    read(cache)
    assert looked == [True, False]


def test_recheck_finds_what_opening_did_not_look_for(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path))
    cache.open("one", 10, fill, check=False).close()
    assert cache.recheck("one")
    _flip(cache.folder / "one")
    with cache.open("one", 10, fill, check=False) as file:
        assert content(file) != b"a" * 10
    assert not cache.recheck("one")
    assert names(cache) == set()


# ------------------------------------------------------------------------------------------------------- other users


def test_the_folder_is_this_users_alone(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path))
    read(cache)
    assert cache.folder == tmp_path / f"uid-{os.geteuid()}"
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert (cache.folder / "one").stat().st_mode & 0o077 == 0


def test_a_folder_that_was_opened_to_others_is_closed_again(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path))
    cache.folder.chmod(0o777)
    read(cache)
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_what_lies_in_the_shared_folder_is_not_read(tmp_path: Path) -> None:
    with NodeCache(str(tmp_path / "elsewhere")).open("one", 10, lambda draft: fill(draft, b"x")) as file:
        (tmp_path / "one").write_bytes(file.read())
    assert read(NodeCache(str(tmp_path))) == b"a" * 10


def test_a_link_in_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"uid-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    first, second = NodeCache(str(tmp_path)), NodeCache(str(tmp_path))
    assert read(first) == b"a" * 10
    assert first.folder == second.folder != tmp_path / "elsewhere"
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kind", ["folder", "file"])
@needs_root
def test_what_another_user_put_in_place_of_the_folder_stops_and_poisons_nobody(tmp_path: Path, kind: str) -> None:
    taken = tmp_path / f"uid-{os.geteuid()}"
    if kind == "folder":
        taken.mkdir(mode=0o777)
        (taken / "one").write_bytes(b"x" * 74)
    else:
        taken.write_bytes(b"")
    os.chown(taken, STRANGER, STRANGER)
    cache = NodeCache(str(tmp_path))
    assert read(cache) == b"a" * 10
    assert cache.folder.name.startswith(f"{taken.name}-")
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert NodeCache(str(tmp_path)).folder == cache.folder


@pytest.mark.parametrize("wrong", ["link", "pipe", "writable", "foreign"])
def test_a_copy_that_is_not_this_users_alone_is_replaced(tmp_path: Path, wrong: str) -> None:
    cache = NodeCache(str(tmp_path))
    read(cache)
    path = cache.folder / "one"
    if wrong == "link":
        path.rename(tmp_path / "one")
        path.symlink_to(tmp_path / "one")
    elif wrong == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif wrong == "writable":
        path.chmod(0o666)
    elif os.geteuid() != 0:
        pytest.skip("only root gives files away")
    else:
        os.chown(path, STRANGER, STRANGER)
    assert read(cache) == b"a" * 10
    assert (cache.damaged, path.is_file(), path.is_symlink()) == (1, True, False)
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (os.geteuid(), 0o600)


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"))
    for name in (".claim-one", ".tmp-one"):
        (cache.folder / name).symlink_to(tmp_path / f"made{name}")
    assert read(cache) == b"a" * 10
    assert not list(tmp_path.glob("made*"))


# --------------------------------------------------------------------------------------------------- other processes


def _make_and_count(folder: str, start: object, counter: object) -> None:
    def make(draft: BinaryIO) -> None:
        with counter.get_lock():  # type: ignore[attr-defined]
            counter.value += 1  # type: ignore[attr-defined]
        fill(draft)

    start.wait()  # type: ignore[attr-defined]
    with NodeCache(folder).open("one", 1000, make) as file:
        assert content(file) == b"a" * 1000
        start.wait(timeout=60)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_eight_processes_make_a_copy_once_and_use_it_at_the_same_time(tmp_path: Path) -> None:
    start, counter = spawn.Barrier(8), spawn.Value("i", 0)
    ranks = [spawn.Process(target=_make_and_count, args=(str(tmp_path), start, counter)) for _ in range(8)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 8
    assert counter.value == 1


@pytest.mark.slow
def test_processes_that_open_and_evict_at_once_meet_no_error() -> None:
    race = [sys.executable, "benchmarks/cache_race.py", "--processes", "6", "--opens", "900"]
    done = subprocess.run(race, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "900  right" in done.stdout


def _die_while_making(folder: str) -> None:
    def make(draft: BinaryIO) -> None:
        draft.write(b"half")
        draft.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    NodeCache(folder).open("one", 10, make)


@pytest.mark.slow
def test_a_killed_maker_stops_nobody_and_holds_no_room(tmp_path: Path) -> None:
    maker = spawn.Process(target=_die_while_making, args=(str(tmp_path),))
    maker.start()
    maker.join()
    assert maker.exitcode == -signal.SIGKILL
    read(cache_of(tmp_path, 1), "another")
    assert read(NodeCache(str(tmp_path))) == b"a" * 10


def test_a_folder_that_is_emptied_meanwhile_is_made_again(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"))
    with private_folder(tmp_path / "cache") as folder:
        folder.path.rmdir()
        (tmp_path / "cache").rmdir()
        with pytest.raises(FileNotFoundError):
            folder.open("one", create=True)
    assert read(cache) == b"a" * 10
