"""Writing a checkpoint again and again, for as long as storage is waited for, before it counts as failed.

Storage that is away is waited for by each request itself (data_pipeline/storage/retries.py). This is for what a request
gives up at once, and what may pass all the same: a full disk, a permission or a key that is being mended, a mount that
hangs. The pauses grow from a fraction of a second to ten seconds.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception, sleep_using_event, wait_random_exponential

from data_pipeline.errors import FoldtrainError
from data_pipeline.leases.lease import LeaseLostError
from data_pipeline.storage.pacing import positive_number
from data_pipeline.storage.retries import DEFAULT_PATIENCE, LONGEST_WAIT, PATIENCE_VARIABLE
from trainer.checkpoints.folder import TakenError

FIRST_PAUSE = 0.2
"""Seconds that the first pause lasts at most; each next one twice as long."""
_LOG = logging.getLogger(__name__)


class Persistence:
    """How long a write is tried.

    Args:
        seconds: from its first try to the start of its last one; None for FOLDTRAIN_STORAGE_PATIENCE.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = _configured() if seconds is None else seconds
        self._hurried = threading.Event()

    def hurry(self) -> None:
        """End with the try that is under way: the process is about to end."""
        self._hurried.set()

    def run(self, what: str, work: Callable[[], None]) -> None:
        """Do it until it succeeds.

        Args:
            what: it is, for messages.
            work: what may be done any number of times.

        Raises:
            FoldtrainError: if it still fails after all tries; it says how many there were.
            Exception: what `work` raises that does not pass, unchanged.
        """
        began = time.monotonic()

        def stop(state: RetryCallState) -> bool:
            return self._hurried.is_set() or time.monotonic() - began + state.upcoming_sleep > self.seconds

        def say(state: RetryCallState) -> None:
            if state.attempt_number == 1:
                error = state.outcome.exception() if state.outcome else None
                _LOG.warning("%s: %s: %s; trying again for %g s", what, type(error).__name__, error, self.seconds)

        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop,
            wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_WAIT),
            sleep=sleep_using_event(self._hurried),
            before_sleep=say,
            reraise=True,
        )
        try:
            retrying(work)
        except Exception as error:
            tries = retrying.statistics["attempt_number"]
            if tries == 1 or not _may_pass(error):
                raise
            passed = time.monotonic() - began
            raise FoldtrainError(f"{type(error).__name__}: {error} (tried {tries} times in {passed:.0f} s)") from error


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError | FoldtrainError) and not isinstance(error, LeaseLostError | TakenError)


def _configured() -> float:
    return positive_number(PATIENCE_VARIABLE) if os.environ.get(PATIENCE_VARIABLE) else DEFAULT_PATIENCE
