"""Loss spikes: what one is, which checkpoint is good, and which steps a run passes over. Pure functions, plain data.

Steps are numbered from 0; a checkpoint at step c holds the result of steps 0 to c - 1, and step s consumes the
positions [s*B, (s+1)*B). When the loss spikes at step s, a run that may roll back (`trainer.spikes.action`)

1. takes the newest good checkpoint: one from before the skipped steps, and at least half a window before the spike
2. records the decision in events.jsonl, and only then acts
3. goes back to that checkpoint, and trains again without the `skip_steps` steps that end with s, as in PaLM (arXiv
   2204.02311, section 5.1)

A step that is passed over consumes nothing and changes nothing: no weight, no moment, no average of the weights. The
numbers of all other steps stay, and with them their samples and their learning rate, so the schedule ends where it was
to end, and the run makes so many updates fewer. What a step consumes is thus still a function of its number alone, and
which steps there are is a function of the skipped ranges, which every checkpoint holds.

A start reads the decisions again: it goes on only from a checkpoint that keeps to them (`keeps_to`).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Ranges = frozenset[tuple[int, int]]
"""Skipped steps: of each range the first, and the one after the last."""

_TO_SIGMA = 1.4826
"""Standard deviations in a median absolute deviation of normally distributed numbers."""
_LEAST_SIGMA = 1e-3
"""Least standard deviation, as a share of the median: losses that hardly move at all make no spikes of nothing."""


@dataclass(frozen=True)
class Spike:
    """Losses that are out of the ordinary."""

    first: int
    """The first step of it."""
    last: int
    """The step at which it was found."""
    loss: float
    """Of that step; may be no number."""
    usual: float | None
    """Median of the window; None if nothing was known yet."""
    limit: float | None
    """What a loss had to be above; None as well."""


class SpikeDetector:
    """Compares each loss with those of the last applied steps.

    A loss is out of the ordinary if it is not finite, or above median + sigmas * sigma of the window, sigma being
    1.4826 times the median absolute deviation. It enters the window all the same, if it is finite, so that a loss that
    stays high is usual after half a window. A step that was not applied changed nothing, and is passed by here:
    `max_skipped_steps` is for those.

    Args:
        window: losses that are looked back on.
        sigmas: how far above the median is out of the ordinary.
        warmup: losses that have to be known before a finite one is judged.
        steps: how many in a row make a spike; it is found once.
    """

    def __init__(self, window: int, sigmas: float, warmup: int, steps: int = 1) -> None:
        self._sigmas, self._warmup, self._steps = sigmas, warmup, steps
        self._losses: deque[float] = deque(maxlen=window)
        self._strange: list[int] = []

    def add(self, step: int, loss: float, *, applied: bool = True) -> Spike | None:
        """Take the loss of a step, averaged over all ranks. Returns the spike that is complete with it, if any."""
        if not applied:
            return None
        usual, limit = self._usual()
        if not math.isfinite(loss) or (limit is not None and loss > limit):
            self._strange.append(step)
        else:
            self._strange.clear()
        if math.isfinite(loss):
            self._losses.append(loss)
        if len(self._strange) != self._steps:
            return None
        return Spike(self._strange[0], step, loss, usual, limit)

    def _usual(self) -> tuple[float | None, float | None]:
        """Median, and the limit above it."""
        if len(self._losses) < max(1, self._warmup):
            return None, None
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - median) for loss in self._losses)
        sigma = max(_TO_SIGMA * deviation, _LEAST_SIGMA * abs(median))
        return median, median + self._sigmas * sigma

    def state(self) -> dict[str, Any]:
        """All that later answers follow from, as JSON."""
        return {"losses": list(self._losses), "strange": list(self._strange)}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state` gave; from nothing for None."""
        given = state or {"losses": [], "strange": []}
        self._losses.clear()
        self._losses.extend(given["losses"])
        self._strange = [int(step) for step in given["strange"]]


@dataclass(frozen=True)
class Rollback:
    """A decision: go back to the checkpoint at step `to`, and pass over the steps `first` to `stop` - 1."""

    to: int
    first: int
    stop: int

    @property
    def skipped(self) -> tuple[int, int]:
        """The range that is passed over."""
        return self.first, self.stop


def skipped_by(spike: Spike, skip_steps: int) -> tuple[int, int]:
    """The range of steps that a rollback passes over: the last `skip_steps` up to the spike's last."""
    return max(0, spike.last + 1 - skip_steps), spike.last + 1


def decide(spike: Spike, checkpoints: Iterable[int], window: int, skip_steps: int) -> Rollback | None:
    """Where to go back to, if there is a good checkpoint.

    Args:
        spike: what was found.
        checkpoints: steps of complete checkpoints that keep to the rollbacks so far.
        window: of the detector.
        skip_steps: steps to pass over.
    """
    first, stop = skipped_by(spike, skip_steps)
    newest = min(first, spike.first - window // 2)
    good = [step for step in checkpoints if step <= newest]
    return Rollback(max(good), first, stop) if good else None


def recorded(events: Iterable[dict[str, Any]]) -> list[Rollback]:
    """The decisions that events.jsonl holds, in their order."""
    found = []
    for event in events:
        if event.get("event") == "spike" and event.get("action") == "rollback":
            first, stop = event["skip"]
            found.append(Rollback(int(event["back_to"]), int(first), int(stop)))
    return found


def keeps_to(step: int, skipped: Collection[tuple[int, int]], decisions: Iterable[Rollback]) -> bool:
    """Whether a checkpoint was made in keeping with all decisions, rather than before one of them took it back.

    Args:
        step: of the checkpoint.
        skipped: the ranges that it holds.
        decisions: all that are on record.
    """
    return all(step <= decision.to or decision.skipped in skipped for decision in decisions)


def next_step(step: int, skipped: Iterable[tuple[int, int]]) -> int:
    """The first step from `step` on that is in none of the ranges."""
    for first, stop in sorted(skipped):
        if first <= step < stop:
            step = stop
    return step


def consumed_steps(step: int, skipped: Iterable[tuple[int, int]]) -> int:
    """How many of the steps before `step` are in none of the ranges."""
    passed_over, end = 0, 0
    for first, stop in sorted(skipped):
        first, stop = max(first, end), min(stop, step)
        passed_over += max(0, stop - first)
        end = max(end, stop)
    return step - passed_over


def to_json(skipped: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Ranges as JSON."""
    return [list(one) for one in sorted(skipped)]


def from_json(skipped: Sequence[Sequence[int]]) -> Ranges:
    """Ranges from JSON."""
    return frozenset((int(first), int(stop)) for first, stop in skipped)
