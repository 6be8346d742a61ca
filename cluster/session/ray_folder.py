"""A folder of our own for the files of Ray: logs and sockets of one that is started here, places where workers meet.

Only this user can look into it: Ray makes its own folder in it open to everybody. Its path is short, since a Unix
socket has 107 bytes for its whole path. It goes with the command; what killed commands left goes with the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.terminal.output import console
from data_pipeline.errors import FoldtrainError

_PREFIX = "ft-"
_SOCKET_BYTES = 107
"""Of a Unix socket's path."""
_RAYS_BYTES = 67
"""What Ray adds to its folder: /session_YYYY-MM-DD_HH-MM-SS_MICROS_PID/sockets/plasma_store.1"""
_OWN_BYTES = len(f"/{_PREFIX}12345678/r")
LONGEST_BASE = _SOCKET_BYTES - _RAYS_BYTES - _OWN_BYTES
"""Bytes of the folder in which ours is made."""
_USUAL = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - ours in there has a random name and mode 0700
_LOCK = "lock"


@contextmanager
def ray_folder() -> Iterator[Path]:
    """The folder to give to Ray, for as long as it is entered.

    Raises:
        FoldtrainError: if there is no place for it.
    """
    folder = make_folder()
    with (folder / "unlocked").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held as long as this process lives
        Path(lock.name).rename(folder / _LOCK)
        try:
            yield folder / "r"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def make_folder() -> Path:
    """A new folder of mode 0700 in TMPDIR, or in a usual place if its path is too long or it cannot be written.

    Raises:
        FoldtrainError: if there is no place for it.
    """
    reasons = []
    for base in _bases():
        place = os.path.realpath(base)
        if len(os.fsencode(place)) > LONGEST_BASE:
            reasons.append(f"{base} is too long for the sockets in it ({len(os.fsencode(place))} bytes)")
            continue
        try:
            made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        except OSError as error:
            reasons.append(f"{base}: {error.strerror}")
            continue
        if reasons:
            _say(f"{reasons[0]}: Ray's session files are in {base}")
        _remove_left(made.parent)
        return made
    tried = "\n  ".join(reasons)
    raise FoldtrainError(
        f"Ray needs a folder that can be written, whose path has {LONGEST_BASE} bytes at most; set TMPDIR to one. "
        f"Tried:\n  {tried}"
    )


def own_folders() -> Iterator[Path]:
    """The folders of this user's commands on this machine, whether or not they still run."""
    for base in _bases():
        for folder in Path(os.path.realpath(base)).glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):  # it goes meanwhile
                status = folder.lstat()
                if status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode):
                    yield folder


def _bases() -> list[str]:
    """Where a folder may be made, the first choice first."""
    return list(dict.fromkeys([os.environ.get("TMPDIR") or _USUAL[0], *_USUAL]))


@functools.cache
def _say(text: str) -> None:
    """Print it on stderr, once in a process."""
    from rich.text import Text

    console(stderr=True).print(Text(text))


def _remove_left(base: Path) -> None:
    """Remove the folders of this user's commands that ended without doing so."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another command's, or removed by one meanwhile
            if folder.lstat().st_uid == os.getuid() and not folder.is_symlink():
                with (folder / _LOCK).open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
