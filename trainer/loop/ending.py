"""How a start of a training stage ends, and the wish that it ends before its last step. Imports no torch."""

from __future__ import annotations

from enum import StrEnum


class Ending(StrEnum):
    """Why the training loop ended without an error. All but the first leave a checkpoint from which it goes on."""

    FINISHED = "finished"
    """All steps are done, and the network is exported."""
    STOPPED = "stopped"
    """It was asked to stop; the same command goes on."""
    PAUSED = "paused"
    """It was asked to make way for a start with other workers, which follows at once."""


class EndRequest:
    """The wish that the stage ends after the step under way or the next, with a checkpoint.

    Any thread may ask, and signal handlers: nothing here takes a lock.
    """

    def __init__(self) -> None:
        self.stop_asked = False
        self.pause_asked = False

    def stop(self) -> None:
        """Ask for the end of the command."""
        self.stop_asked = True

    def pause(self) -> None:
        """Ask for a new start, with other workers."""
        self.pause_asked = True
