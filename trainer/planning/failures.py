"""What failures cost a run, and how often to write checkpoints (Young 1974; Daly, FGCS 22, 2006)."""

from __future__ import annotations

import math
from dataclasses import dataclass

LLAMA3_NODE_HOURS = 6335.0
"""Hours between unexpected failures of a node of 8 GPUs: 419 in 54 days on 2,048 of them (Llama 3, arXiv 2407.21783,
section 3.3.4)."""


@dataclass(frozen=True)
class Failures:
    """Over the whole run."""

    expected: float
    """How many."""
    interval_seconds: float
    """Between checkpoints, as configured."""
    lost_hours: float
    """Work that is done again, restarts, and time blocked by checkpoints, at that interval."""
    best_seconds: float
    """The interval that makes it least; not below the time that an upload takes."""
    best_lost_hours: float
    """What is lost then."""


def best_interval(blocked: float, between_failures: float) -> float:
    """Daly's optimum in seconds, which is Young's sqrt(2 * blocked * mtbf) with terms of higher order.

    Args:
        blocked: seconds that training waits for a checkpoint.
        between_failures: mean seconds between failures of the whole job.
    """
    if blocked >= 2 * between_failures:
        return between_failures
    ratio = blocked / (2 * between_failures)
    return math.sqrt(2 * blocked * between_failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - blocked


def lost_seconds(interval: float, run: float, blocked: float, between_failures: float, restart: float) -> float:
    """Time that a run of `run` seconds loses: checkpoints, and per failure half an interval and a restart."""
    return run / interval * blocked + run / between_failures * (interval / 2 + restart)


def expect_failures(
    run: float, interval: float, blocked: float, upload: float, between_failures: float, restart: float
) -> Failures:
    """All arguments in seconds; `between_failures` is of the whole job: a node's divided by the nodes."""
    best = max(best_interval(blocked, between_failures), upload, 1.0)
    lost, least = (lost_seconds(each, run, blocked, between_failures, restart) for each in (interval, best))
    return Failures(run / between_failures, interval, lost / 3600, best, least / 3600)
