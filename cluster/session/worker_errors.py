"""Errors of training workers: which ones starting again can mend, and which ones end the run at once.

Starting all workers again mends a lost node, and storage that is away for longer than it is waited for, but not
gradients that are not finite, or a shard that is corrupt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data_pipeline.errors import FoldtrainError, StorageAwayError


def own_errors(errors: Iterable[BaseException]) -> Iterator[FoldtrainError]:
    """Of each error, the first of ours among it and what it was wrapped in."""
    for error in errors:
        seen: BaseException | None = error
        while seen is not None:
            cause = getattr(seen, "cause", None)  # of an error of both Ray's class and ours, the one that was raised
            if isinstance(seen, FoldtrainError) and not isinstance(cause, BaseException):
                yield seen
                break
            seen = cause if isinstance(cause, BaseException) else seen.__cause__


def user_error(errors: Iterable[BaseException]) -> FoldtrainError | None:
    """The first error that a user has to mend before a start is of use; None if there is none."""
    return next((error for error in own_errors(errors) if not isinstance(error, StorageAwayError)), None)


def lost_process(error: BaseException) -> FoldtrainError | None:
    """What a user is told if Ray lost a process or a node; None for errors that code raised."""
    from ray.exceptions import RayError, RayTaskError

    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, RayError):
        seen = seen.__cause__
    if seen is None or isinstance(seen, RayTaskError):
        return None
    lines = [line.strip() for line in str(seen).splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("The actor is dead because")), (lines or [""])[0])
    return FoldtrainError(
        f"Ray lost a process that the stage needs ({type(seen).__name__}): {reason or 'no reason given'}\n"
        "It may have been killed, for instance for want of memory. The same command goes on from what is committed."
    )
