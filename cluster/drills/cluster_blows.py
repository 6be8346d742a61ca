"""What is lost of a cluster, and when: a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cluster.drills.drilled_graph import CHECKPOINT_EVERY, SHARDS, STEPS

Kind = Literal["worker", "raylet", "network", "storage", "driver", "head"]
KINDS: tuple[Kind, ...] = ("worker", "raylet", "network", "storage", "driver", "head")
"""kill -9 of a worker, and of Ray's process of a node; a node that reaches nothing for a while; an S3 server that is
away for a while; kill -9 of the process that does the stages, and of Ray's head."""
FATAL: frozenset[Kind] = frozenset({"driver", "head"})
"""A job may end of these, and is submitted again; of the others it may not."""
UNITS = {"train-tokenizer": STEPS // CHECKPOINT_EVERY, "tokenize": SHARDS, "train-generator": STEPS // CHECKPOINT_EVERY}
"""The stages that are struck, and how many checkpoints or shards each commits."""
DELAY_SECONDS = 2.0
CUT_SECONDS = (3.0, 60.0)
"""Of a network: at the shortest Ray does not notice, at the longest it has given the node up, and no word is said."""


@dataclass(frozen=True)
class TrialPlan:
    """A trial before it is done."""

    seed: int
    kind: Kind
    stage: str
    units: int
    """Checkpoints or shards that the stage has committed before."""
    delay: float
    """Seconds after the last of them."""
    cut: float
    """Seconds for which a network is cut."""
    choice: float
    """Which of several processes or nodes, as a share of them."""


def plan_trial(seed: int, kinds: Sequence[Kind] = KINDS) -> TrialPlan:
    """The trial of a seed. As many seeds in a row, from a multiple of their number, have all kinds.

    Args:
        seed: of all that is drawn.
        kinds: that are possible here.
    """
    order = random.Random(f"order {seed // len(kinds)}").sample(kinds, len(kinds))
    drawn = random.Random(f"trial {seed}")
    stage = drawn.choice(list(UNITS))
    return TrialPlan(
        seed=seed,
        kind=order[seed % len(kinds)],
        stage=stage,
        units=drawn.randrange(UNITS[stage]),
        delay=drawn.uniform(0, DELAY_SECONDS),
        cut=drawn.uniform(*CUT_SECONDS),
        choice=drawn.random(),
    )


def sooner(plan: TrialPlan, misses: int) -> TrialPlan:
    """The same trial after so many in which the job was over before it could be struck: half as late each time."""
    return replace(plan, units=plan.units >> misses, delay=plan.delay / 2**misses)
