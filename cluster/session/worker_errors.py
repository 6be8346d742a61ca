"""Errors of training workers: which ones starting again can mend, and which ones end the run at once.

Ray Train starts all workers again after any error of one of them, `cluster.max_failures` times. That mends a lost node,
and storage that is away for longer than it is waited for, but not gradients that are not finite, or a shard that is
corrupt. Ray Train has no setting for it. What it does have is a callback on its controller, whose own errors are never
retried: it raises the worker's error again there, and Ray ends all workers and hands the error to `fit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from data_pipeline.errors import FoldtrainError, StorageAwayError


def _own_errors(errors: Iterable[BaseException]) -> Iterator[FoldtrainError]:
    """Of each error, the first of ours among it and what Ray wrapped in it."""
    for error in errors:
        seen: BaseException | None = error
        while seen is not None:
            if isinstance(seen, FoldtrainError):
                yield seen
                break
            # Ray Train keeps a worker's error there, and gives no other access to it.
            seen = getattr(seen, "_base_exc", None) or seen.__cause__


def user_error(errors: Iterable[BaseException]) -> FoldtrainError | None:
    """The first error that a user has to mend before a start is of use; None if there is none."""
    return next((error for error in _own_errors(errors) if not isinstance(error, StorageAwayError)), None)


class EndAtUserError(UserCallback):
    """On Ray Train's controller: ends the run at the first error that a user has to mend."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002 - Ray's
        """Raise that error, if any worker has it."""
        error = user_error(worker_exceptions.values())
        if error is not None:
            raise error


def fit(trainer: Any) -> Any:
    """Run a Ray Train trainer that has `EndAtUserError` among its callbacks.

    Returns:
        What the training function returned on the first worker.

    Raises:
        FoldtrainError: as a worker raised it; for storage that stayed away, after the last start that Ray had left.
            Also if Ray lost processes, or its own, too often.
        ray.train.TrainingFailedError: for all else that failed too often.
    """
    try:
        return trainer.fit().return_value
    except RayError as lost:
        raise (lost_process(lost) or lost) from lost
    except TrainingFailedError as failed:
        causes: list[BaseException] = []
        if isinstance(failed, ControllerError):
            causes = [failed.controller_failure]
        elif isinstance(failed, WorkerGroupError):
            causes = list(failed.worker_failures.values())
        error = user_error(causes) or next(_own_errors(causes), None)
        if error is None:
            error = next(filter(None, map(lost_process, causes)), None)
        if error is None:
            raise
        raise error from None


def lost_process(error: BaseException) -> FoldtrainError | None:
    """What a user is told if Ray lost a process or a node; None for errors that code raised."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, RayError):
        seen = getattr(seen, "_base_exc", None) or seen.__cause__
    if seen is None or isinstance(seen, RayTaskError):
        return None
    lines = [line.strip() for line in str(seen).splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("The actor is dead because")), (lines or [""])[0])
    return FoldtrainError(
        f"Ray lost a process that the stage needs ({type(seen).__name__}): {reason or 'no reason given'}\n"
        "It may have been killed, for instance for want of memory. The same command goes on from what is committed."
    )
