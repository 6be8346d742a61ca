"""The errors that a user can cause and mend. The command line prints them without a traceback."""

from __future__ import annotations


class FoldtrainError(Exception):
    """What went wrong, where, and what to do. Exit code 1."""

    exit_code = 1


class StorageAwayError(FoldtrainError):
    """Storage did not answer for longer than it is waited for. Starting again later may do."""


class UsageError(FoldtrainError):
    """What was asked for cannot be done as asked: a config, a path or an input is wrong. Exit code 2."""

    exit_code = 2


class CorruptShardError(UsageError):
    """A shard's bytes are not those that were committed."""


class NotAFileError(UsageError, IsADirectoryError, NotADirectoryError):
    """There is a folder, or something that is no file at all, where a file is expected; or the reverse."""


class DiskError(FoldtrainError, OSError):
    """This machine's disk is full, read-only, broken, or not this user's."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)

    def __str__(self) -> str:
        """What to tell the user."""
        return str(self.args[1])
