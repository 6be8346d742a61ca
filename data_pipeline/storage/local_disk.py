"""Files of this machine: where the operating system's errors become ours, with the file and a remedy.

FileNotFoundError and FileExistsError stay as they are: whoever asks for a file knows what it means that there is none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from data_pipeline.errors import DiskError, FoldtrainError, NotAFileError, UsageError

TEMPORARY = ".tmp-"
"""How the names of unfinished local writes begin. Listings leave them out."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_AGAIN = "run the command again, which goes on from what was committed"
_REMEDIES = {
    errno.ENOSPC: f"the disk is full. Free some space, or give another place, and {_AGAIN}",
    errno.EDQUOT: f"your quota of this disk is used up. Free some space, or give another place, and {_AGAIN}",
    errno.EROFS: "the disk is read-only. Give another place, or have it mounted for writing",
    errno.ENAMETOOLONG: "the name is longer than the disk takes. Give a shorter one",
    errno.EIO: "the disk failed. See the kernel's log (dmesg), and give a place on another disk",
    errno.ESTALE: f"the network disk lost the file. Mount it again, and {_AGAIN}",
    errno.ELOOP: "its links lead in a circle. Take them away",
    errno.EMFILE: "this process may open no more files. Raise `ulimit -n`",
    errno.ENFILE: "this machine may open no more files. End other programs, or raise fs.file-max",
    errno.ENXIO: "it is a pipe or a socket. Name the file",
    errno.EFBIG: "the disk takes no file of that size. Give another place, or raise `ulimit -f`",
}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Inside, what the operating system refuses is explained with the path and what to do.

    Raises:
        UsageError: if a file stands where a folder should, the reverse, or the path cannot be one.
        DiskError: if the disk is full, read-only, broken, or not this user's.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, FoldtrainError):
        raise
    except (IsADirectoryError, NotADirectoryError) as error:
        raise NotAFileError(_wrong_kind(path)) from error
    except OSError as error:
        raise _explain(path, error) from error
    except ValueError as error:  # a NUL, or what cannot be encoded
        raise UsageError(f"{str(path)!r} is no path: {error}") from error


def explain_unhandled(error: OSError) -> FoldtrainError | None:
    """A refusal of the operating system that no boundary has explained, if it names a file: for the command line."""
    if not isinstance(error.filename, str | bytes) or not error.errno:
        return None
    path = Path(os.fsdecode(error.filename))
    if isinstance(error, FileNotFoundError):
        return UsageError(f"{_shown(path)}: there is no such file or folder; correct the path")
    if isinstance(error, FileExistsError):
        return UsageError(f"{_shown(path)} is there already; move it away, or give another place")
    try:
        with disk_errors(path):
            raise error
    except FoldtrainError as explained:
        return explained


def _explain(path: Path, error: OSError) -> DiskError:
    number = error.errno or 0
    if number in {errno.EACCES, errno.EPERM}:
        remedy = f"this user (uid {os.geteuid()}) may not. Look at `ls -ld {_existing(path)}`, or give another place"
    else:
        remedy = _REMEDIES.get(number, f"see whether the disk works, and {_AGAIN}")
    return DiskError(number, f"{_shown(path)}: {error.strerror or error}: {remedy}")


def _wrong_kind(path: Path) -> str:
    found = _existing(path)
    if found.is_dir():
        return f"{_shown(path)} is a folder, and a file is expected: name the file"
    return f"{_shown(path)}: {_shown(found)} is a file, and a folder is expected: move it away, or give another place"


def _existing(path: Path) -> Path:
    """A path, or the nearest of the folders above it that is there."""
    return next((p for p in (path, *path.absolute().parents) if os.path.lexists(p)), Path("/"))


def _shown(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_file(path: Path) -> BinaryIO:
    """A regular file, for reading. A pipe, which nobody may ever write to, and a device, which may never end, are none.

    Raises:
        FileNotFoundError: if there is none.
        UsageError: if it is something else.
        DiskError: if the disk refuses.
    """
    with disk_errors(path):
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise NotAFileError(f"{_shown(path)} is no regular file, but a pipe, a socket or a device: name the file")
    return file


def read_file(path: Path, start: int = 0, length: int | None = None) -> bytes:
    """`length` bytes of a file from `start`, fewer where it ends; all of them if None."""
    with open_file(path) as file, disk_errors(path):
        there = max(0, os.fstat(file.fileno()).st_size - start)
        file.seek(start)
        return file.read() if length is None else file.read(min(length, there))


def write_file(
    path: Path, data: bytes | memoryview | Callable[[BinaryIO], object], publish: Callable[[Path, Path], object]
) -> None:
    """Write a file under another name, and have `publish(temporary, path)` give it its own. Folders are made.

    `data` is its content, or writes it.

    Raises:
        FileExistsError: as `publish` raises it.
        UsageError: if a folder cannot be made because there is a file.
        DiskError: if the disk refuses.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{uuid4().hex}-{path.name}")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                if callable(data):
                    data(file)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # of a disk that fails, the first error is the one to tell
                temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where there are none.

    Raises:
        UsageError: if there is a file, or a link to nothing.
        DiskError: if the disk refuses.
    """
    try:
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotAFileError(_wrong_kind(path)) from error
    except FileNotFoundError as error:  # of a file system that is not for files, such as /proc
        raise DiskError(errno.ENOENT, f"{_shown(path)}: no folder can be made there; give another place") from error


def link(temporary: Path, path: Path) -> None:
    """Give a file its name, unless the name is taken.

    Raises:
        FileExistsError: if it is.
    """
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, "there is a file", str(path)) from None
        temporary.replace(path)  # a filesystem without hard links: whole, but two at once may both get here
