"""Every file and folder below a local folder. A listing is complete or it fails: nothing in it is left out silently.

Links are followed. A link that leads back to a folder it lies in is an error that names it, since the tree has no end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_pipeline.errors import UsageError
from data_pipeline.storage.local_disk import disk_errors

_Identity = tuple[int, int]
"""Device and inode: the same for every name of a folder."""

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}


class Found(NamedTuple):
    """A file or folder of a listing."""

    name: str
    """Relative to the folder that was listed, with slashes."""
    status: os.stat_result
    """Of what a link leads to."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, or a link to one."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_for_all(self) -> bool:
        """Whether everybody may read it, so that nobody has to be asked; on NFS a question takes a request."""
        return self.status.st_mode & 0o444 == 0o444

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file, or a link to one."""
        return stat.S_ISREG(self.status.st_mode)


@dataclass(frozen=True)
class _Folder:
    """A folder that is still to be listed."""

    name: str
    path: str
    trail: frozenset[_Identity]
    """It, and every folder that it lies in."""
    by_link: bool
    """Whether a link leads to it, or to a folder that it lies in."""


def shown(path: str) -> str:
    """A path for messages: bytes that are no UTF-8 are escaped."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def scan(root: Path, *, strict: bool, is_skipped: Callable[[str], bool] = lambda _name: False) -> Iterator[Found]:
    """Every file and folder below `root`, in no certain order; none if there is no such folder.

    Args:
        root: the folder.
        strict: nothing writes to it meanwhile, so that what vanishes, links to nothing and a folder that is there under
            two names are errors. If not, other processes may remove what was seen, and a dangling link is no file.
        is_skipped: says by its name whether a file, or a folder with all that is in it, is left alone.

    Raises:
        UsageError: if a part of it cannot be read, or a link leads in a circle; it names it.
    """
    first = _first(root, strict=strict)
    if first is None:
        return
    seen: dict[_Identity, _Folder] = {}
    left = [first]
    while left:
        folder = left.pop()
        if strict:
            _check_once(folder, seen)
        for entry in _entries(folder, strict=strict):
            name = f"{folder.name}/{entry.name}" if folder.name else entry.name
            status = None if is_skipped(name) else _status(entry, strict=strict)
            if status is None:
                continue
            yield Found(name, status)
            if stat.S_ISDIR(status.st_mode):
                left.append(_below(folder, name, entry, _identity(status)))


def _first(root: Path, *, strict: bool) -> _Folder | None:
    """The folder that is to be listed, if there is one."""
    try:
        status = root.stat()
        if stat.S_ISDIR(status.st_mode):
            above = {_identity(parent.stat()) for parent in root.resolve().parents}
            return _Folder("", str(root), frozenset({_identity(status), *above}), by_link=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"the folder {shown(str(root))} cannot be read ({error.strerror})") from error
    if strict:
        raise UsageError(f"{shown(str(root))} is {kind_of(status)}, not a folder: name a folder")
    return None


def check_file(path: Path) -> None:
    """See that a file can be read to its end.

    Raises:
        FileNotFoundError: if there is none.
        FoldtrainError: if it is a link to nothing, a folder, a FIFO, a device, or not readable by this user.
    """
    try:
        status = path.stat()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP} and path.is_symlink():
            raise UsageError(_bad_link(str(path), error)) from error
        with disk_errors(path):
            raise
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{shown(str(path))} is {kind_of(status)}, not a file: name a file")
    check_readable(str(path))


def check_readable(path: str) -> None:
    """See that this user may read a file.

    Raises:
        UsageError: if not.
    """
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UsageError(f"{shown(path)} cannot be read by this user: change its permissions, or remove it")


def kind_of(status: os.stat_result) -> str:
    """What something is."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _below(folder: _Folder, name: str, entry: os.DirEntry[str], identity: _Identity) -> _Folder:
    is_link = entry.is_symlink()
    if identity in folder.trail and (is_link or folder.by_link):
        target = f", which leads to {_target(entry.path)}," if is_link else ""
        raise UsageError(
            f"{shown(entry.path)}{target} is a folder that it lies in itself, so that its listing would have no end: "
            "remove the link"
        )
    return _Folder(name, entry.path, folder.trail | {identity}, folder.by_link or is_link)


def _check_once(folder: _Folder, seen: dict[_Identity, _Folder]) -> None:
    """A folder that is there under two names would have each of its images twice."""
    before = seen.setdefault(_identity(Path(folder.path).stat()), folder)
    if before is not folder and (before.by_link or folder.by_link):
        raise UsageError(
            f"{shown(before.path)} and {shown(folder.path)} are the same folder, by a link: each of its images "
            "would be taken twice, so remove the link"
        )


def _entries(folder: _Folder, *, strict: bool) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder.path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError) as error:
        if strict:
            raise UsageError(f"{shown(folder.path)} was removed while it was listed: start again") from error
        return []
    except OSError as error:
        raise UsageError(
            f"the folder {shown(folder.path)} cannot be listed ({error.strerror}): change its permissions, or move it "
            "away"
        ) from error


def _status(entry: os.DirEntry[str], *, strict: bool) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError as error:
        if not strict:  # another process finished or removed it meanwhile
            return None
        if entry.is_symlink():
            raise UsageError(_bad_link(entry.path, error)) from error
        raise UsageError(f"{shown(entry.path)} was removed while its folder was listed: start again") from error
    except OSError as error:
        if entry.is_symlink():
            raise UsageError(_bad_link(entry.path, error)) from error
        raise UsageError(f"{shown(entry.path)} cannot be read ({error.strerror}): change its permissions") from error


def _target(link: str) -> str:
    return shown(str(Path(link).readlink()))


def _bad_link(path: str, error: OSError) -> str:
    reasons = {errno.ENOENT: "which is not there", errno.ELOOP: "and so in a circle"}
    reason = reasons.get(error.errno or 0, f"which cannot be read ({error.strerror})")
    return f"{shown(path)} is a link to {_target(path)}, {reason}: mend or remove the link"
