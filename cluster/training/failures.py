"""What a stage ends with, or starts again for, when workers of it failed."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.session.worker_errors import lost_process, own_errors, user_error
from cluster.training.worker_process import Outcome


class WorkersFailedError(Exception):
    """Workers of a stage failed, none of them by a mistake of the user.

    Args:
        failures: what became of each of them, by rank.
    """

    def __init__(self, failures: Mapping[int, Outcome | Exception]) -> None:
        self.failures = dict(failures)
        self.worker_failures = {rank: error for rank, failure in failures.items() if (error := _error(failure))}
        super().__init__("\n".join(["training failed", *map(self._told, sorted(failures))]))

    def _told(self, rank: int) -> str:
        failure = self.failures[rank]
        trace = failure.trace if isinstance(failure, Outcome) else f"{type(failure).__name__}: {failure}"
        return f"rank {rank}: {trace.strip()}"

    @property
    def reason(self) -> str:
        """The likeliest cause, in a line: a process that was lost, or else the first error."""
        errors = self.worker_failures
        lost = next((rank for rank in sorted(errors) if lost_process(errors[rank]) is not None), None)
        rank = next(iter(sorted(errors))) if lost is None else lost
        text = next((line for line in str(errors[rank]).splitlines() if line.strip()), "")
        return f"rank {rank}: {type(errors[rank]).__name__}" + (f": {text.strip()}" if lost is None and text else "")


def _error(failure: Outcome | Exception) -> BaseException | None:
    return failure.error if isinstance(failure, Outcome) else failure


def last_error(failed: WorkersFailedError) -> Exception:
    """What the command ends with once workers have failed too often: an error of ours, if there is one."""
    errors = list(failed.worker_failures.values())
    own = user_error(errors) or next(own_errors(errors), None)
    return own or next(filter(None, map(lost_process, errors)), None) or failed
