"""Copies of remote data on a node's own disk, one for all its processes.

A copy is made once: whoever comes second waits for the first. It is there whole or not at all, and a process that is
killed leaves nothing that stops the others, because every claim is a lock (flock) that the kernel releases:

    <name>          a finished copy; whoever uses it holds a shared lock, so that it is not removed under him
    .claim-<name>   the right to make it: its maker holds an exclusive lock, and the others wait for that one
    .tmp-<name>     a copy in the making, already as long as it will be; its maker holds an exclusive lock here, too

Nobody waits at the copy in the making: it becomes the finished one, which its users hold as long as they train.

With a limit, the copies that were used least recently go first. Those in use stay. The folder must lie on a disk of the
node: flock does not reach over every network filesystem.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from data_pipeline.errors import FoldtrainError, UsageError

_CLAIM = ".claim-"
_TEMPORARY = ".tmp-"
_ROOM_LOCK = ".room"
_KEPT_FREE = 0.1


def default_folder() -> Path:
    """$XDG_CACHE_HOME/foldtrain, or ~/.cache/foldtrain."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foldtrain"


class NodeCache:
    """A folder of copies.

    Args:
        folder: on this node; None for the default.
        limit: most bytes that the folder may hold; None leaves a tenth of the disk free.
    """

    def __init__(self, folder: str | None = None, limit: int | None = None) -> None:
        self.folder = Path(folder) if folder else default_folder()
        self.limit = limit

    def open(self, name: str, most: int, make: Callable[[Path], None]) -> BinaryIO:
        """The copy called `name`, which is made if there is none. It is not removed before the file is closed.

        Args:
            name: of the copy; it must follow from the content (a digest), because it is never refreshed.
            most: bytes that it may take.
            make: fills a file of `most` zero bytes with the content, and cuts it if it is shorter; it may check the
                content and raise.

        Raises:
            UsageError: if the cache's limit leaves no room for it.
            FoldtrainError: if the disk is full or the folder cannot be written.
        """
        path = self.folder / name
        while True:
            with suppress(FileNotFoundError):
                return _use(path)
            with self._failures(), self._locked(f"{_CLAIM}{name}"):
                if not path.exists():
                    with self._locked(f"{_TEMPORARY}{name}") as draft:
                        self._reserve(draft, most)
                        make(draft)
                        _finish(draft, path, most)

    @contextmanager
    def _locked(self, name: str) -> Iterator[Path]:
        """A file of the folder, held exclusively, and removed if it is not renamed; waits for whoever has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        while True:
            with path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_same(file, path):  # whoever had it is done
                    continue
                try:
                    yield path
                finally:
                    if _is_same(file, path):
                        path.unlink()
                return

    def _reserve(self, draft: Path, size: int) -> None:
        """Make room, then take it, so that the limit holds also while several copies are made."""
        with (self.folder / _ROOM_LOCK).open("ab") as room:
            fcntl.flock(room, fcntl.LOCK_EX)
            os.truncate(draft, 0)
            self._make_room(size)
            descriptor = os.open(draft, os.O_RDWR)
            try:
                # Not a hole: a full disk is an error here, and not a SIGBUS when the copy is written through a map.
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)

    def _make_room(self, size: int) -> None:
        held = {path: path.stat() for path in self.folder.iterdir() if path.is_file()}
        taken = sum(stat.st_size for stat in held.values())
        limit = self.limit
        if limit is None:
            disk = shutil.disk_usage(self.folder)
            limit = taken + disk.free - int(disk.total * _KEPT_FREE)
        excess = size + taken - limit
        for path, stat in sorted(held.items(), key=lambda item: item[1].st_mtime_ns):
            if excess <= 0:
                return
            if path.name != _ROOM_LOCK and stat.st_size and _remove_unused(path):
                excess -= stat.st_size
        if excess > 0:
            raise UsageError(
                f"{self.folder} may hold {limit} bytes (data.reading.cache_bytes; without it a tenth of the disk is "
                f"left free), which leaves no room for {size} more beside the copies in use: raise the limit by at "
                f"least {excess}, free space there, or set data.reading.cache_dir to a larger disk of the node"
            )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}:
                raise FoldtrainError(
                    f"{self.folder}: {os.strerror(error.errno)}. Free space there, or set data.reading.cache_dir to a "
                    "folder on a disk of the node that has room"
                ) from error
            raise


def _use(path: Path) -> BinaryIO:
    """Open a copy and keep it from being removed."""
    file = path.open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)
    if not _is_same(file, path):  # it was removed between the two calls
        file.close()
        raise FileNotFoundError(path)
    os.utime(path)
    return file


def _finish(draft: Path, path: Path, most: int) -> None:
    assert draft.stat().st_size <= most, path
    descriptor = os.open(draft, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.replace(path)


def _is_same(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_unused(path: Path) -> bool:
    """Remove a copy that nobody uses, or a draft whose maker is dead. Says whether it did."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
