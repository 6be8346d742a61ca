"""Waiting for a job: its record says how it stands, and its target is asked only what the record cannot know."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.jobs.records import OVER, JobRecord
from cluster.jobs.submitting import target_of
from cluster.targets.target import ENDED, TargetState
from data_pipeline.errors import FoldtrainError

_ASK_SECONDS = 10.0
"""Between two questions to a target."""
_ENDING_SECONDS = 30.0
"""How long a job that its scheduler calls ended may take for its own last word."""


def asked(record: JobRecord) -> TargetState | None:
    """What the target says of a job; None if it has not taken it, or does not answer."""
    if record.handle is None:
        return None
    try:
        return target_of(record).state(record.handle)
    except FoldtrainError:
        return None


class Watching:
    """Decides whether a job is over.

    Args:
        tell: told why nothing happens, whenever the reason changes.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.reason = ""
        """What the target said of a job that has not spoken for itself."""
        self._tell, self._told = tell, ""
        self._asked = self._ended = 0.0

    def is_over(self, record: JobRecord) -> bool:
        """Whether nothing more will come of a job."""
        if record.status in OVER:
            return True
        if record.status == "running":
            self._ended = 0.0
            return False
        now = time.monotonic()
        if self._asked and now - self._asked < _ASK_SECONDS:
            return False
        self._asked = now
        return self._judge(record, asked(record), now)

    def _judge(self, record: JobRecord, state: TargetState | None, now: float) -> bool:
        if state is None:
            return record.status == "preempted"
        if state.status != "running" and (state.message or state.status == "pending"):
            self._say(f"{state.status}{': ' + state.message if state.message else ''}")
        if state.status not in ENDED:
            return False
        self._ended = self._ended or now
        self.reason = state.message or state.status
        return record.status in {"preempted", "lost"} or now - self._ended > _ENDING_SECONDS

    def _say(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._tell(text)
