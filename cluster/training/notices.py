"""Notices that a training stage is to end: a signal to the command, to a worker or to all, or a node that leaves.

    command   a signal is written down; between two looks at its workers the command tells all of them (supervision.py)
    worker    ends after the step under way or the next, with a checkpoint; all ranks agree on it beside a step

Nothing of it is in the path of training. A batch system that warns before it ends a job sends its signal to the
command (`#SBATCH --signal=B:USR1@300` and a shell that passes it on, SIGTERM from Kubernetes) or to every process of it
(scancel, systemd, `timeout`; SIGHUP where a terminal closes), some of them twice: Ray's own processes do not listen
(cluster/session/ray_processes.py), and a repetition within a second is the same notice. A node that Ray drains (a spot
instance about to go, `ray drain-node`, SIGTERM to `ray start --block`) makes the workers pause.

Without Ray's head nobody can pass anything on: the workers end by themselves then, and the command with an error.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from types import FrameType, TracebackType
from typing import Any, Self

from cluster.session.head_watch import HeadLostError
from cluster.session.ray_processes import NOTICES

_SAME_SECONDS = 1.0
"""`timeout` signals its command and then its group, a closing terminal does as much: these are one notice."""


def notices_here() -> tuple[signal.Signals, ...]:
    """The signals that are notices to this process; not SIGHUP under nohup. A second one ends the process at once."""
    return tuple(number for number in NOTICES if signal.getsignal(number) is not signal.SIG_IGN)


class FirstNotice:
    """Tells a further notice from the first one, which may come twice."""

    def __init__(self) -> None:
        self.received = False
        self._at = 0.0

    def is_second(self, number: int) -> bool:
        """Whether a notice has come before this one, and was another. Called by signal handlers."""
        now = time.monotonic()
        if not self.received:
            self.received, self._at = True, now
            return False
        return number != signal.SIGHUP and now - self._at > _SAME_SECONDS


def end_now(number: int) -> None:
    """End this process as the signal does by default."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class Notice:
    """In the command: listens for signals as long as it is entered, and collects what there is to say of its run."""

    def __init__(self) -> None:
        self._first = FirstNotice()
        self._lost: HeadLostError | None = None
        self._texts: deque[str] = deque()  # any thread may add to it
        self._said_so, self._last = False, ""
        self._before: dict[signal.Signals, Any] = {}
        self.workers_are_up = False
        """Whether the run has workers that can be told."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in notices_here()}
        return self

    @property
    def received(self) -> bool:
        """Whether a notice has come."""
        return self._first.received

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        if self._lost is not None and kind is SystemExit:
            raise self._lost

    def end_without_head(self, error: HeadLostError) -> None:
        """Have the main thread leave whatever call of Ray it waits in, and raise this. From any thread."""
        self._lost = error
        if self._before:
            os.kill(os.getpid(), signal.SIGUSR1)

    def say(self, text: str) -> None:
        """Have a line about the run printed, unless it is what was said last."""
        if text != self._last:
            self._last = text
            self._texts.append(text)

    def leave(self, reason: str) -> None:
        """Take a notice that no signal brings, and have its reason printed in place of what is said of a signal."""
        if not self._first.received:
            self._first.received = self._said_so = True
            self.say(reason)

    def news(self) -> list[str]:
        """What there is to say of the run since the last call: a signal came, or `say` said it. One thread."""
        texts = []
        if self.received and not self._said_so:
            self._said_so = True
            texts.append("told to end: the workers save a checkpoint after the step under way (a second ends at once)")
        while self._texts:
            texts.append(self._texts.popleft())
        return texts

    def has_workers(self) -> bool:
        """Whether the workers of the run are up."""
        return self.workers_are_up

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._lost is not None:
            raise SystemExit(0)  # out of Ray's call, which lets nothing else pass; __exit__ keeps it
        if self._first.is_second(number):
            end_now(number)
