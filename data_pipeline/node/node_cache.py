"""Copies of remote data on a node's own disk, one for all its processes.

A copy is made once: whoever comes second waits for the first. It is there whole or not at all, and a process that is
killed leaves nothing that stops the others, because every claim is a lock (flock) that the kernel releases:

    <name>          a finished copy with its seal; whoever uses it holds a shared lock, so that it is not removed
    .claim-<name>   the right to make it or to throw it away: held exclusively, and the others wait for that one
    .tmp-<name>     a copy in the making, already as long as it will be; its maker holds an exclusive lock here, too
    .room           held exclusively while room is made

Nobody waits at the copy in the making: it becomes the finished one, which its users hold as long as they train.

With a limit, the copies that were used least recently go first, once it is known that enough of them can go; those in
use stay. A copy is compared with its seal (copy_seal.py) when it is opened: its length always, its bytes once in a
process where nobody else checks them. A damaged one is thrown away and made again, with a warning.

The files lie in a folder of this user alone below the one that is configured (private_folder.py): what other users put
there is neither read nor in the way, and the limit counts for each user. The folder must lie on a disk of the node:
flock does not reach over every network filesystem.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.node.copy_seal import SEAL_BYTES, find_damage, seal
from data_pipeline.node.private_folder import NotPrivateError, PrivateFolder, private_folder

_CLAIM = ".claim-"
_TEMPORARY = ".tmp-"
_ROOM_LOCK = ".room"
_KEPT_FREE, _MOST_KEPT_FREE = 0.1, 10 * 2**30
"""Without a limit so much of the disk is left free: the share, or the bytes where they are less."""
UNSET_LIMIT = "data.reading.cache_bytes; without it a tenth of the disk, at most 10 GiB, is left free"
_TRIES = 100
"""Times that a copy is looked for or made, when it is removed again and again before it can be used."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What a source cannot fail with when it is read."""
_LOG = logging.getLogger(__name__)

Make = Callable[[BinaryIO], object]


class NoRoomError(UsageError):
    """A cache may not hold a copy beside those that are in use."""


class _GoneError(Exception):
    """A file or a folder of the cache was removed while it was used."""


class _SourceError(Exception):
    """Carries what the source of a copy raised past the handling of the cache's own failures."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def default_folder() -> Path:
    """$XDG_CACHE_HOME/foldtrain, or ~/.cache/foldtrain."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foldtrain"


class NodeCache:
    """A folder of copies.

    Args:
        folder: on this node, shared with other users or not; None for the default.
        limit: most bytes that this user's copies may take; None leaves a tenth of the disk free, at most 10 GiB.
    """

    def __init__(self, folder: str | None = None, limit: int | None = None) -> None:
        self._shared = Path(folder) if folder else default_folder()
        self.limit = limit
        self.damaged = 0
        """Copies that this object has found damaged and thrown away."""
        self._checked: dict[str, tuple[int, int, int]] = {}

    @property
    def folder(self) -> Path:
        """Where the copies lie: this user's own folder."""
        with private_folder(self._shared) as folder:
            return folder.path

    def open(self, name: str, most: int, make: Make, *, check: bool = True) -> BinaryIO:
        """The copy called `name`, which is made if there is none. It is not removed before the file is closed.

        After its content (`copy_seal.content_bytes`) the file has a seal.

        Args:
            name: of the copy; it must follow from the content (a digest), because it is never refreshed.
            most: bytes that its content may take.
            make: fills an open file of `most` zero bytes with the content, and cuts it if it is shorter; it may check
                the content and raise.
            check: compare every byte with the seal, once for each process and copy; without it whoever reads the copy
                does so, and calls `recheck`.

        Raises:
            NoRoomError: if the cache's limit leaves no room for it.
            UsageError: if the name is none.
            FoldtrainError: if the disk is full or the folder cannot be used.
            Exception: whatever `make` raises, unchanged, so that a FileNotFoundError is never the cache's own.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name of a copy: the data set's manifest is damaged")
        why = "another process removed it"
        for _ in range(_TRIES):
            try:
                with self._failures(), private_folder(self._shared) as folder:
                    file = self._use(folder, name, check=check) or self._make(folder, name, most, make)
            except _GoneError as error:
                why = str(error)
                continue
            except _SourceError as source:
                raise source.error from None
            if file is not None:
                return file
        raise FoldtrainError(
            f"{self._shared}: {name} could not be opened in {_TRIES} tries ({why}): end what empties the folder, or "
            "set data.reading.cache_dir to another one"
        )

    def capacity(self) -> int:
        """Bytes that this user's copies may take in all, those that are there included.

        Raises:
            FoldtrainError: if the folder cannot be used.
        """
        with self._failures(), private_folder(self._shared) as folder:
            return self._capacity(folder, sum(status.st_size for status in folder.files().values()))

    def recheck(self, name: str) -> bool:
        """Compare every byte of a copy with its seal. Returns whether it is there and whole; damaged, it is removed."""
        self._checked.pop(name, None)
        try:
            with self._failures(), private_folder(self._shared) as folder:
                file = self._use(folder, name, check=True)
        except _GoneError:
            return False
        if file is None:
            return False
        file.close()
        return True

    def _use(self, folder: PrivateFolder, name: str, *, check: bool) -> BinaryIO | None:
        """Open a copy and keep it from being removed; None if there is none, or it is thrown away."""
        try:
            file = folder.open(name)
        except FileNotFoundError:
            return None
        except NotPrivateError as error:
            self._report(folder, name, error.strerror)
            folder.remove(name)
            return None
        keep = False
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not folder.holds(name, file):  # it was removed between the two calls
                return None
            wrong = self._find_damage(file, name, check=check)
            if wrong is not None:
                self._discard(folder, name, file, wrong)
                return None
            os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))
            keep = True
        finally:
            if not keep:
                file.close()
        return file

    def _find_damage(self, file: BinaryIO, name: str, *, check: bool) -> str | None:
        identity = _identity(file)
        every_byte = check and self._checked.get(name) != identity
        wrong = find_damage(file, name, every_byte=every_byte)
        if wrong is None and every_byte:
            self._checked[name] = identity
        return wrong

    def _discard(self, folder: PrivateFolder, name: str, file: BinaryIO, wrong: str) -> None:
        """Throw a damaged copy away, unless somebody did and made another."""
        with _locked(folder, f"{_CLAIM}{name}"):
            if folder.holds(name, file):
                folder.remove(name)
                self._report(folder, name, wrong)

    def _report(self, folder: PrivateFolder, name: str, wrong: str | None) -> None:
        self.damaged += 1
        _LOG.warning(
            "%s is damaged and is made again: %s (damaged copy %d of this process). If this repeats, check the disk",
            *(folder.path / name, wrong, self.damaged),
        )

    def _make(self, folder: PrivateFolder, name: str, most: int, make: Make) -> BinaryIO | None:
        """Make a copy and open it; None if another process made it, or it is gone already."""
        with _locked(folder, f"{_CLAIM}{name}"):
            if folder.has(name):
                return None
            with _locked(folder, f"{_TEMPORARY}{name}") as draft:
                self._reserve(folder, draft, most + SEAL_BYTES)
                os.ftruncate(draft.fileno(), most)
                _fill(draft, make)
                assert os.fstat(draft.fileno()).st_size <= most, name
                seal(draft, name)
                os.fsync(draft.fileno())
                folder.rename(f"{_TEMPORARY}{name}", name)
                file = os.fdopen(os.dup(draft.fileno()), "rb")  # the same lock
        self._checked[name] = _identity(file)
        file.seek(0)
        fcntl.flock(file, fcntl.LOCK_SH)
        if folder.holds(name, file):
            return file
        file.close()
        return None

    def _reserve(self, folder: PrivateFolder, draft: BinaryIO, size: int) -> None:
        """Make room, then take it, so that the limit holds also while several copies are made."""
        with folder.open(_ROOM_LOCK, create=True) as room:
            fcntl.flock(room, fcntl.LOCK_EX)
            os.ftruncate(draft.fileno(), 0)
            self._make_room(folder, size)
            # Not a hole: a full disk is an error here, and not a SIGBUS when the copy is written through a map.
            os.posix_fallocate(draft.fileno(), 0, size)

    def _make_room(self, folder: PrivateFolder, size: int) -> None:
        """Remove copies that nobody uses until there is room; none if there cannot be enough."""
        held = folder.files()
        taken = sum(status.st_size for status in held.values())
        limit = self._capacity(folder, taken)
        excess = size + taken - limit
        with ExitStack() as locks:
            chosen = []
            for name, status in sorted(held.items(), key=lambda item: item[1].st_atime_ns):
                if excess <= 0:
                    break
                if name != _ROOM_LOCK and status.st_size and _lock_unused(folder, name, locks):
                    chosen.append(name)
                    excess -= status.st_size
            if excess > 0:
                raise NoRoomError(
                    f"{folder.path} may hold {limit} bytes ({UNSET_LIMIT}), which leaves no room for {size} more "
                    f"beside the copies in use: raise the limit by at least {excess}, free space there, or set "
                    "data.reading.cache_dir to a larger disk of the node"
                )
            for name in chosen:
                folder.remove(name)

    def _capacity(self, folder: PrivateFolder, taken: int) -> int:
        if self.limit is not None:
            return self.limit
        disk = shutil.disk_usage(folder.path)
        kept_free = min(int(disk.total * _KEPT_FREE), _MOST_KEPT_FREE)
        return max(0, taken + disk.free - kept_free)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what the disk refuses into an error that names the setting."""
        try:
            yield
        except FileNotFoundError as error:
            raise _GoneError(str(error)) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise FoldtrainError(
                f"{error.filename or self._shared}: {reason}. The cache of this node is in {self._shared}: free space "
                "there, or set data.reading.cache_dir to a folder on a disk of the node that has room and that you may "
                "write to"
            ) from error


def _identity(file: BinaryIO) -> tuple[int, int, int]:
    """Changes with every write to a file, and with the file."""
    status = os.fstat(file.fileno())
    return (status.st_dev, status.st_ino, status.st_mtime_ns)


def _fill(draft: BinaryIO, make: Make) -> None:
    try:
        make(draft)
        draft.flush()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        raise _SourceError(error) from error


@contextmanager
def _locked(folder: PrivateFolder, name: str) -> Iterator[BinaryIO]:
    """A file of the folder, held exclusively, and removed if it is not renamed; waits for whoever has it."""
    while True:
        try:
            file = folder.open(name, create=True)
        except NotPrivateError:
            folder.remove(name)
            continue
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not folder.holds(name, file):  # whoever had it is done
                continue
            try:
                yield file
            finally:
                if folder.holds(name, file):
                    folder.remove(name)
            return


def _lock_unused(folder: PrivateFolder, name: str, locks: ExitStack) -> bool:
    """Hold a copy that nobody uses, or a draft whose maker is dead, until `locks` are closed. Says whether it is."""
    try:
        file = locks.enter_context(folder.open(name))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    except NotPrivateError:
        return True
    return folder.holds(name, file)
