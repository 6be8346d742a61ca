"""What is done to a command, and when: a pure function of a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Stage = Literal["ingest", "tokenize"]
Kind = Literal["driver", "actor", "raylet", "server", "faults"]

STAGES: tuple[Stage, ...] = ("ingest", "tokenize")
KINDS: tuple[Kind, ...] = ("driver", "actor", "raylet", "server", "faults")
"""kill -9 of the command itself, of an actor, of Ray's node, of the S3 server, which is started again; and a while in
which requests get 503s and cut connections."""
FATAL: frozenset[Kind] = frozenset({"driver", "raylet"})
"""A command may end of these; of the others it may not."""
MOMENTS = {"start-up": (0.05, 0.95), "early": (0.0, 0.3), "middle": (0.3, 0.7), "late": (0.7, 1.0)}
"""Of the first blow. Start-up: as a share of the time to the first commit; the others: of the shards committed."""
AGAIN = "again"
"""Moment of a second blow: so long after the first, as a share of the time to the first commit."""
_AGAIN_SHARES = (0.1, 1.2)
_DELAY_SECONDS = 0.4
_SECOND_BLOW = 0.3


@dataclass(frozen=True)
class Situation:
    """How far a trial is."""

    shards: int
    """That are committed."""
    since_start: float
    """Seconds since the command was started."""
    since_commit: float
    """Seconds since the last shard was committed."""
    since_blow: float
    """Seconds since the last blow."""


@dataclass(frozen=True)
class Pace:
    """How an undisturbed command goes."""

    start_up: float
    """Seconds to the first committed shard."""
    shards: int
    """In all."""


@dataclass(frozen=True)
class Blow:
    """One of them."""

    kind: Kind
    moment: str
    share: float
    """Of the moment's own measure."""
    delay: float
    """Seconds after a commit, so that no step of a commit is spared."""

    def is_due(self, now: Situation, pace: Pace) -> bool:
        """Whether its moment has come."""
        if self.moment == "start-up":
            return now.since_start >= self.share * pace.start_up
        if self.moment == AGAIN:
            return now.since_blow >= self.share * pace.start_up
        # one less than all at most: once the last one is there, a command may end before it can be struck
        wanted = min(pace.shards - 1, max(1, int(self.share * pace.shards)))
        return now.shards > wanted or (now.shards == wanted and now.since_commit >= self.delay)


@dataclass(frozen=True)
class TrialPlan:
    """A trial before it is done."""

    seed: int
    stage: Stage
    blows: tuple[Blow, ...]


def plan_trial(seed: int) -> TrialPlan:
    """The trial of a seed. Stages alternate; five seeds in a row from a multiple of five have all kinds of blows."""
    order = random.Random(f"order {seed // len(KINDS)}").sample(KINDS, len(KINDS))
    drawn = random.Random(f"trial {seed}")
    moment = drawn.choice(list(MOMENTS))
    blows = [_draw(drawn, order[seed % len(KINDS)], moment, MOMENTS[moment])]
    if drawn.random() < _SECOND_BLOW:
        blows.append(_draw(drawn, drawn.choice(KINDS), AGAIN, _AGAIN_SHARES))
    return TrialPlan(seed, STAGES[seed % len(STAGES)], tuple(blows))


def _draw(drawn: random.Random, kind: Kind, moment: str, shares: tuple[float, float]) -> Blow:
    return Blow(kind, moment, drawn.uniform(*shares), drawn.uniform(0, _DELAY_SECONDS))
