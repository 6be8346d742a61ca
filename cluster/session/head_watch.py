"""Whether Ray's head (GCS) still answers: without it nothing can be started, told or ended.

Ray waits for its head for a minute, in which workers train on and the command says nothing; then it kills all of them.
Here the command and each training worker ask for themselves. Workers then end with a checkpoint by their own decision,
as nobody can tell them to; the command waits for that and ends, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from data_pipeline.errors import FoldtrainError

_PAUSE_SECONDS = 2.0
_AGAIN_SECONDS = 1.0
"""Between two questions, if the last one had no answer."""
_ANSWER_SECONDS = 5.0
_AWAY_SECONDS = 10.0
_FAILURES = 3
"""The head counts as lost after so many questions without an answer, over `_AWAY_SECONDS`: within 20 seconds, also if
it hangs and each question waits for its answer."""


class HeadLostError(FoldtrainError):
    """The head of the Ray cluster is gone, and with it the cluster."""


class HeadWatch:
    """Asks the head whether it is there, in a thread, as long as it is entered.

    Args:
        ask: whether the head answers; it may take `_ANSWER_SECONDS`.
        on_lost: called once, in the thread, when it counts as lost.
    """

    def __init__(self, ask: Callable[[], bool], on_lost: Callable[[], None]) -> None:
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
        answered, failures = time.monotonic(), 0
        while not self._stop.wait(_AGAIN_SECONDS if failures else _PAUSE_SECONDS):
            if self._ask():
                answered, failures = time.monotonic(), 0
                continue
            failures += 1
            if failures >= _FAILURES and time.monotonic() - answered >= _AWAY_SECONDS:
                self.lost = True
                self._on_lost()
                return


def watch_head(on_lost: Callable[[], None]) -> HeadWatch:
    """A watch of the head that this process is connected to, as a driver or as a worker."""
    import ray

    from cluster.session.ray_address import is_head_alive

    return HeadWatch(is_head_alive(ray.get_runtime_context().gcs_address, _ANSWER_SECONDS), on_lost)
