"""How a start of a training stage ends, and the wish that it ends before its last step. Imports no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from typing import Any


class Ending(StrEnum):
    """Why the training loop ended without an error. All but the first leave a checkpoint from which it goes on."""

    FINISHED = "finished"
    """All steps are done, and the network is exported."""
    STOPPED = "stopped"
    """It was asked to stop; the same command goes on."""
    PAUSED = "paused"
    """It was asked to make way for a start with other workers, which follows at once."""


class EndRequest:
    """The wish that the stage ends after the step under way or the next, with a checkpoint; and what is to be recorded.

    Any thread may ask, and signal handlers: nothing here takes a lock.
    """

    def __init__(self) -> None:
        self.stop_asked = False
        self.pause_asked = False
        self._checkpoints: deque[bool] = deque()
        self._notes: deque[tuple[str, dict[str, Any]]] = deque()

    def note(self, event: str, details: dict[str, Any]) -> None:
        """Have the stage record an event of whoever runs it, after the step under way."""
        self._notes.append((event, details))

    def take_notes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events that were to be recorded since the last call."""
        while self._notes:
            yield self._notes.popleft()

    def checkpoint(self) -> None:
        """Ask for a checkpoint after the step under way or the next, and to go on."""
        self._checkpoints.append(True)

    def take_checkpoint(self) -> bool:
        """Whether one was asked for since the last call."""
        asked = bool(self._checkpoints)
        while self._checkpoints:
            self._checkpoints.popleft()
        return asked

    def stop(self) -> None:
        """Ask for the end of the command."""
        self.stop_asked = True

    def pause(self) -> None:
        """Ask for a new start, with other workers."""
        self.pause_asked = True
