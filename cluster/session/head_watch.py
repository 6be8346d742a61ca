"""Whether Ray's head (GCS) still answers: without it nothing can be started, told or ended.

Ray waits for its head for a minute, in which workers train on and the command says nothing; then it kills all of them.
Here the command and each training worker ask for themselves. Workers then end with a checkpoint by their own decision,
as nobody can tell them to; the command waits for that and ends, too.

A head where nobody listens is gone. One that listens and says nothing may be busy, as on a login node that others use:
it has longer, though not the minute after which Ray ends the workers without a checkpoint.

A cluster that the command started itself has one node. Without that node's raylet nothing can be started there again,
though its head answers: it is lost, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from cluster.session.ray_address import Head, question_to_head
from cluster.session.ray_processes import own_raylet_has_ended
from data_pipeline.errors import FoldtrainError

_PAUSE_SECONDS = 2.0
_AGAIN_SECONDS = 1.0
"""Between two questions, if the last one had no answer."""
_ANSWER_SECONDS = 5.0
_FAILURES = 3
_AWAY_SECONDS, _SILENT_SECONDS = 10.0, 30.0
"""The head counts as lost after so many questions in a row, over the first of these times, to which nobody listened;
and if it has listened and given no answer for the second one."""


class HeadLostError(FoldtrainError):
    """The head of the Ray cluster is gone, and with it the cluster."""


class HeadWatch:
    """Asks the head whether it is there, in a thread, as long as it is entered.

    Args:
        ask: how the head is found; it may take `_ANSWER_SECONDS`.
        on_lost: called once, in the thread, when it counts as lost.
    """

    def __init__(self, ask: Callable[[], Head], on_lost: Callable[[], None]) -> None:
        self.lost = False
        self._ask, self._on_lost = ask, on_lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head watch", daemon=True)

    def start(self) -> None:
        """Watch until the head is lost, or this process ends."""
        self._thread.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()

    def _watch(self) -> None:
        answered, away, pause = time.monotonic(), 0, _PAUSE_SECONDS
        while not self._stop.wait(pause):
            found = self._ask()
            if found is Head.ANSWERS:
                answered, away, pause = time.monotonic(), 0, _PAUSE_SECONDS
                continue
            pause = _AGAIN_SECONDS
            away = away + 1 if found is Head.AWAY else 0
            without = time.monotonic() - answered
            if (away >= _FAILURES and without >= _AWAY_SECONDS) or without >= _SILENT_SECONDS:
                self.lost = True
                self._on_lost()
                return


def watch_head(on_lost: Callable[[], None]) -> HeadWatch:
    """A watch of the head that this process is connected to, as a driver or as a worker."""
    import ray

    ask_head = question_to_head(ray.get_runtime_context().gcs_address, _ANSWER_SECONDS)
    return HeadWatch(lambda: Head.AWAY if own_raylet_has_ended() else ask_head(), on_lost)
