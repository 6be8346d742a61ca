"""Who holds a lease, as it is recorded in storage, and whether that process is known to be dead."""

from __future__ import annotations

import getpass
import os
import re
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self
from uuid import uuid4

SECONDS = 30.0
"""How long a holder may be silent by default."""
_LONGEST_SECONDS = 600.0
_STRANGE = re.compile(r"[^\w.@:+ /-]")
_MOST_TEXT = 80

Life = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease, or held it."""

    command: str
    """What it does."""
    host: str = ""
    user: str = ""
    pid: int = 0
    process_start: int = 0
    """When the process began, in ticks since the machine booted, so that a later process with its number is another."""
    machine: str = ""
    """Boot and PID namespace in which `pid` counts; empty if the system does not tell."""
    started: float = 0.0
    """When the lease was taken, in seconds since 1970 by the holder's clock. Shown, never compared."""
    seconds: float = SECONDS
    """How long it may be silent."""
    token: str = ""
    """Of this one taking of the lease."""
    beat: int = 0
    """Grows with each sign of life."""
    released: bool = False
    """Whether it has ended the lease itself."""
    unreadable: bytes = field(default=b"", repr=False)
    """What stands in storage, if it is no record of a holder."""

    @classmethod
    def here(cls, command: str, seconds: float) -> Self:
        """This process."""
        pid = os.getpid()
        return cls(
            *(command, socket.gethostname(), _user(), pid, _process_start(pid) or 0, _machine()),
            *(time.time(), seconds, uuid4().hex),
        )

    @classmethod
    def parse(cls, record: Any) -> Self:
        """A record from storage.

        Raises:
            ValueError, TypeError, KeyError: if it is none.
        """
        seconds = float(record["seconds"])
        if not 0 < seconds <= _LONGEST_SECONDS:
            raise ValueError("a lease of impossible length")
        return cls(
            command=_plain(record["command"]),
            host=_plain(record["host"]),
            user=_plain(record["user"]),
            pid=int(record["pid"]),
            process_start=int(record["process_start"]),
            machine=_plain(record["machine"]),
            started=float(record["started"]),
            seconds=seconds,
            token=_plain(record["token"]),
            beat=int(record["beat"]),
            released=record["released"] is True,
        )

    @classmethod
    def unknown(cls, data: bytes) -> Self:
        """Whoever wrote something that is no record of a holder."""
        return cls("an unknown command", "an unknown host", "unknown", unreadable=data)

    def record(self) -> dict[str, Any]:
        """As it is stored."""
        return {name: value for name, value in asdict(self).items() if name != "unreadable"}

    def next_beat(self) -> Self:
        """The same holder, one sign of life later."""
        return replace(self, beat=self.beat + 1)

    def life(self) -> Life:
        """Whether the process lives; unknown for one of another machine."""
        if not self.machine or self.machine != _machine() or self.pid <= 0:
            return "unknown"
        return "alive" if _process_start(self.pid) == self.process_start else "dead"

    def __str__(self) -> str:
        """Who it is, for messages."""
        try:
            since = f"{datetime.fromtimestamp(self.started, UTC):%Y-%m-%d %H:%M:%S} UTC"
        except (OverflowError, OSError, ValueError):
            since = "an unknown time"
        return f"{self.command} on {self.host} (pid {self.pid}, user {self.user}), since {since}"


def _plain(value: Any) -> str:
    """Text from storage that can do nothing to a terminal."""
    return _STRANGE.sub("?", str(value)[:_MOST_TEXT])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid())


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}".replace("[", "").replace("]", "")
    except OSError:
        return ""


def _process_start(pid: int) -> int | None:
    """None if there is no such process, or it only waits to be reaped."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in {"Z", "X"} else int(fields[18])
