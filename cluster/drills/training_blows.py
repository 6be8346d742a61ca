"""What is done to a training command, and when: a pure function of a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["worker", "workers", "driver", "raylet", "server"]
Phase = Literal["start-up", "load", "steps", "snapshot", "upload", "export"]
Moment = Literal["start-up", "load", "steps", "snapshot", "upload", "committed"]

KINDS: tuple[Kind, ...] = ("worker", "workers", "driver", "raylet", "server")
"""kill -9 of one training worker, of all at once, of the command itself, of Ray's node with the workers on it, and of
the S3 server, which is started again."""
FATAL: frozenset[Kind] = frozenset({"driver", "raylet"})
"""A command may end of these; of the others it may not."""
MOMENTS: tuple[Moment, ...] = ("start-up", "steps", "snapshot", "upload", "committed")
"""Of the first blow: before the first step; while no checkpoint is under way; between the record of what is about to
be saved and the first object of a checkpoint; between its first object and its COMPLETE; and once COMPLETE is there,
while older checkpoints are removed, or the network is exported."""
PARTS = ("rank_0000.safetensors", "rank_0000.json", "rank_0001.safetensors", "index.json", "state.json", "COMPLETE")
"""Objects of a checkpoint that may be the first one that storage does not take."""
ZERO_STAGES = (2, 3, 1, 0)
"""In the order of the trials: one for five seeds in a row."""

STEPS, CHECKPOINT_EVERY, WORKERS = 40, 5, 2
CHECKPOINTS = STEPS // CHECKPOINT_EVERY

_STALLED = 0.6
"""Share of the blows to an upload for which it is held up at one object; the others strike it as it runs."""
_SNAPSHOT_SECONDS, _UPLOAD_SECONDS, _COMMIT_SECONDS = 0.01, 0.08, 0.05
_AGAIN = 0.25
"""Share of the trials whose next start is struck, too, while it loads the checkpoint."""
_RESTARTING: tuple[Kind, ...] = ("worker", "workers", "driver", "raylet")


@dataclass(frozen=True)
class Sight:
    """What is seen of a training command from outside."""

    phase: Phase
    since_phase: float
    """Seconds since it began."""
    since_start: float
    """Seconds since the command was started."""
    done: int
    """Checkpoints that are complete, counted from the first step."""
    stalled: bool
    """Whether a request is held up."""


@dataclass(frozen=True)
class Pace:
    """How an undisturbed command goes."""

    start_up: float
    """Seconds from its start to the first step."""
    interval: float
    """Seconds from one COMPLETE to the next."""


@dataclass(frozen=True)
class Blow:
    """One of them."""

    kind: Kind
    moment: Moment
    after: int = 0
    """Checkpoints that are complete before."""
    delay: float = 0.0
    """Seconds after the moment's beginning; for start-up and steps as a share of the pace."""
    stall: str | None = None
    """Object at which the upload, or the load, is held up until the blow; None strikes it as it runs."""

    def is_due(self, now: Sight, pace: Pace) -> bool:
        """Whether its moment has come."""
        if self.moment == "start-up":
            return now.since_start >= self.delay * pace.start_up
        if now.done < self.after:
            return False
        if self.stall is not None:
            return now.stalled and now.phase == self.moment
        # A moment that was over before the delay was is waited for once more, with half of it, then with a third.
        wait = self.delay / (1 + now.done - self.after)
        if self.moment == "committed":
            return now.phase in {"steps", "export"} and now.since_phase >= wait
        if now.done >= CHECKPOINTS - 1:
            return now.phase in {"steps", "snapshot", "upload"}  # it never came, and soon nothing will
        if self.moment == "steps":
            wait *= pace.interval
        return now.phase == self.moment and now.since_phase >= wait


@dataclass(frozen=True)
class TrialPlan:
    """A trial before it is done."""

    seed: int
    zero_stage: int
    blows: tuple[Blow, ...]


def plan_trial(seed: int) -> TrialPlan:
    """The trial of a seed. Five seeds in a row from a multiple of five have all kinds of blows, and all moments."""
    block, number = divmod(seed, len(KINDS))
    kind = random.Random(f"kinds {block}").sample(KINDS, len(KINDS))[number]
    moment = random.Random(f"moments {block}").sample(MOMENTS, len(MOMENTS))[number]
    drawn = random.Random(f"training {seed}")
    blows = [_draw(drawn, kind, moment)]
    may_load = kind in _RESTARTING and moment != "start-up" and blows[0].after < CHECKPOINTS
    if may_load and drawn.random() < _AGAIN:
        blows.append(Blow(drawn.choice(_RESTARTING), "load", stall="rank_"))
    return TrialPlan(seed, ZERO_STAGES[block % len(ZERO_STAGES)], tuple(blows))


def _draw(drawn: random.Random, kind: Kind, moment: Moment) -> Blow:
    if moment == "start-up":
        return Blow(kind, moment, delay=drawn.uniform(0.05, 0.95))
    if moment == "committed":  # of the last checkpoint, too: then the export is struck
        return Blow(kind, moment, drawn.randint(1, CHECKPOINTS), drawn.uniform(0, _COMMIT_SECONDS))
    after = drawn.randint(1, CHECKPOINTS - 2)
    if moment == "steps":
        return Blow(kind, moment, after, drawn.uniform(0, 0.7))
    if moment == "snapshot":
        return Blow(kind, moment, after, drawn.uniform(0, _SNAPSHOT_SECONDS))
    if kind != "server" and drawn.random() < _STALLED:
        return Blow(kind, moment, after, stall=drawn.choice(PARTS))
    return Blow(kind, moment, after, drawn.uniform(0, _UPLOAD_SECONDS))
