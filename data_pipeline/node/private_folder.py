"""A folder of one user alone, below a folder that others may write to, too.

It is called `uid-<number>` and has mode 0700. What another user put there under that name is left alone, and a folder
`uid-<number>-<random>` is used in its place. All files are reached through the descriptor of the folder that was
checked, so nothing that is renamed or linked around it leads anywhere else; links are never followed.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_FOREIGN = {errno.ELOOP, errno.ENOTDIR, errno.EACCES}


class NotPrivateError(OSError):
    """A file is not one that this user made for himself alone: a link, another user's, or writable by others."""


class PrivateFolder:
    """The folder, while it is open.

    Args:
        path: where it is, for messages.
        descriptor: of the open folder.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def open(self, name: str, *, create: bool = False) -> BinaryIO:
        """One of its files, to be read, or also written where `create` makes it if there is none.

        Raises:
            FileNotFoundError: if there is none.
            NotPrivateError: if it is a link, no regular file, another user's, or writable by others.
        """
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        try:
            # O_NONBLOCK: a pipe without a writer would be waited for.
            descriptor = os.open(
                name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=self._descriptor
            )
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
                raise NotPrivateError(error.errno, "is a link or no file", str(self.path / name)) from error
            raise
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _is_own(status) or status.st_mode & 0o022:
            os.close(descriptor)
            raise NotPrivateError(errno.EPERM, "is not this user's alone", str(self.path / name))
        return os.fdopen(descriptor, "r+b" if create else "rb")

    def holds(self, name: str, file: BinaryIO) -> bool:
        """Whether the open file is still the one of that name."""
        try:
            there = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(file.fileno()), there)

    def has(self, name: str) -> bool:
        """Whether there is anything of that name."""
        try:
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def files(self) -> dict[str, os.stat_result]:
        """Its regular files by name. What others remove or rename while it is listed is in it or not, as it happens."""
        found = {}
        with os.scandir(self._descriptor) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found[entry.name] = status
        return found

    def remove(self, name: str) -> None:
        """Remove a file or a link, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of what has that name."""
        os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)


@contextmanager
def private_folder(shared: Path) -> Iterator[PrivateFolder]:
    """This user's folder below `shared`, made if there is none.

    Raises:
        NotPrivateError: if the filesystem gives files to other users than those who make them.
        OSError: if it cannot be made.
    """
    shared.mkdir(parents=True, exist_ok=True)
    path, descriptor = _find(shared)
    try:
        yield PrivateFolder(path, descriptor)
    finally:
        os.close(descriptor)


def _find(shared: Path) -> tuple[Path, int]:
    first = shared / f"uid-{os.geteuid()}"
    with suppress(FileExistsError):
        first.mkdir(0o700)
    descriptor = _enter(first)
    if descriptor is not None:
        return first, descriptor
    prefix = f"{first.name}-"  # another user put something there under our name
    for path in sorted(path for path in shared.iterdir() if path.name.startswith(prefix)):
        descriptor = _enter(path)
        if descriptor is not None:
            return path, descriptor
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=shared))
    descriptor = _enter(made)
    if descriptor is None:
        raise NotPrivateError(errno.EPERM, "a folder that is made there is not its maker's", str(made))
    return made, descriptor


def _enter(path: Path) -> int | None:
    """Open a folder that is this user's own, and close it to others; None if it is not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _FOREIGN:
            return None
        raise
    status = os.fstat(descriptor)
    if not _is_own(status):
        os.close(descriptor)
        return None
    if status.st_mode & 0o077:
        os.fchmod(descriptor, 0o700)
    return descriptor


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid()
