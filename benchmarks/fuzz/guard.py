"""What an input may cost, and where it may look: memory, seconds, and files outside of its folder."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

MORE_BYTES = 2**30
"""Address space that the children have beyond that of the process they are forked from."""
SECONDS = 10.0
"""Of processor time: how busy the machine is with other work makes no finding."""
WAITS = 10
"""Times that by the clock, for a reader that waits and computes nothing."""
_WATCHED = {
    "open",
    "os.listdir",
    "os.scandir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.link",
}
_FREE = tuple(
    {
        *(os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"))),
        *(path for path in sys.path if path),
        str(Path(__file__).resolve().parents[2]),
        *("/proc/self", "/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom", "/etc/mime.types"),
        *(
            "/usr/lib/locale",
            "/etc/ld.so.cache",
            "/sys/devices/system",
            "/sys/fs/cgroup",
            "/proc/meminfo",
            "/proc/cpuinfo",
        ),
        *("/proc/filesystems", "/proc/stat"),
    }
)
"""Code and its like: what imports and clocks read."""


class TooLongError(BaseException):
    """An input has taken its seconds."""


class Guard:
    """Watches one process. There is one, as an audit hook cannot be taken away."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self._folder, self._named = "", ""
        sys.addaudithook(self._audit)

    def bound_memory(self) -> None:
        """From now on, MORE_BYTES beyond what is mapped now. Threads get small stacks and no arenas of their own."""
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: an arena takes 64 MB of addresses for each thread
        threading.stack_size(2**20)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    @contextmanager
    def watching(self, folder: Path, named: str = "") -> Iterator[None]:
        """While it lasts, note what is opened outside of a folder, and end what takes too long.

        Args:
            folder: where the input lies.
            named: text of a config: the files that it names are its user's, who asks for them.
        """
        self.opened, self._folder, self._named = [], os.path.realpath(folder), named
        timers = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, WAITS * SECONDS)}
        for timer, (number, seconds) in timers.items():
            signal.signal(number, _end)
            signal.setitimer(timer, seconds)
        try:
            yield
        finally:
            for timer in timers:
                signal.setitimer(timer, 0)
            self._folder = ""

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._folder or event not in _WATCHED or _is_nameless(event, arguments):
            return
        for path in arguments[:2] if event in {"os.rename", "os.link"} else arguments[:1]:
            if isinstance(path, str | bytes | os.PathLike):
                self._check(event, os.fsdecode(path))

    def _check(self, event: str, path: str) -> None:
        found = os.path.abspath(path)  # noqa: PTH100 - links are followed by no reader, so they are none here
        inside = found == self._folder or found.startswith(self._folder + os.sep)
        free = any(found == each or found.startswith(each + os.sep) for each in _FREE)
        if not (inside or free or (self._named and path in self._named)):
            self.opened.append(f"{event} {path[:200]}")


def _is_nameless(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether it makes a temporary file without a name: the folder for them is opened, and nothing in it."""
    return event == "open" and arguments[0] == tempfile.gettempdir()


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise TooLongError
