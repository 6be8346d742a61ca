"""The rollbacks of a run: which steps it passes over, from which checkpoint it goes on, what it does about a spike.

trainer/rollback/spikes.py has the rules; here they meet storage and the other ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from trainer.checkpoints.catalog import (
    complete_steps,
    damaged_steps,
    decisions_on_record,
    latest_step,
    read_state,
    step_folder,
    valid_steps,
    what_to_do,
)
from trainer.checkpoints.commits import COMPLETE, KEEP
from trainer.config import SpikeConfig
from trainer.engine.agreement import Agreement
from trainer.rollback import spikes
from trainer.rollback.spikes import Ranges, Rollback, Spike, SpikeDetector


class Rollbacks:
    """What has been decided about the steps of a run, equal on all ranks.

    Args:
        folder: of the stage.
        checkpoints: their folder.
        config: what to do about spikes; None watches for none, but keeps to decisions that are on record.
        agreement: of all ranks.
    """

    def __init__(self, folder: str, checkpoints: str, config: SpikeConfig | None, agreement: Agreement) -> None:
        self._folder, self._checkpoints = folder, checkpoints
        self._config, self._agreement = config, agreement
        self._detector: SpikeDetector | None = None
        if config:
            self._detector = SpikeDetector(config.window, config.sigmas, config.window // 2, config.steps)
        self._decisions: list[Rollback] = []
        self.skipped: Ranges = frozenset()
        self.spike: Spike | None = None
        """What the last step completed."""

    # ------------------------------------------------------------------------------------------------- going on

    def starting_checkpoint(self) -> int | None:
        """Step of the newest checkpoint that keeps to all decisions on record (a collective); others are removed.

        Raises:
            FoldtrainError: if there are decisions, and no checkpoint that keeps to them; or if there are none but
                damaged ones.
        """
        found: tuple[list[Rollback], int | None, list[int]] | None = None
        if self._agreement.rank == 0:
            decisions = list(dict.fromkeys([*decisions_on_record(self._folder), *self._decisions]))
            newest = self._newest(decisions)
            found = decisions, newest, damaged_steps(self._checkpoints) if newest is None else []
        decided: tuple[list[Rollback], int | None, list[int]] = self._agreement.from_first(found)
        self._decisions, step, damaged = decided
        if damaged:
            raise FoldtrainError(
                f"{self._checkpoints} has no checkpoint to go on from that is whole: those at steps "
                f"{', '.join(map(str, damaged))} are damaged. {what_to_do(self._checkpoints)}."
            )
        if self._decisions and step is None:
            raise FoldtrainError(
                f"{self._checkpoints} has no complete checkpoint to go on from after the rollback to step "
                f"{self._decisions[-1].to} that events.jsonl records. Bring that checkpoint back, or delete "
                f"{self._folder} to start anew."
            )
        return step

    def _newest(self, decisions: Sequence[Rollback]) -> int | None:
        """On rank 0. One whose state cannot be read is taken, too: whoever loads it finds what is wrong."""
        if not decisions:
            return latest_step(self._checkpoints)
        good, complete = set(valid_steps(self._checkpoints, decisions)), complete_steps(self._checkpoints)
        good |= {step for step in complete if not read_state(self._checkpoints, step)}
        if not good:
            return None
        for step in sorted(set(complete) - good):
            _remove(step_folder(self._checkpoints, step))
        return max(good)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state, or from {} at the start of a run."""
        held = spikes.from_json(state.get("skipped_ranges", []))
        self.skipped = held | {decision.skipped for decision in self._decisions}
        self.spike = None
        if self._detector:
            self._detector.load_state(state.get("spikes"))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        watched = {"spikes": self._detector.state()} if self._detector else {}
        return {"skipped_ranges": spikes.to_json(self.skipped)} | watched

    def next_step(self, step: int) -> int:
        """The first step from `step` on that is not passed over."""
        return spikes.next_step(step, self.skipped)

    def consumed(self, step: int) -> int:
        """Steps before `step` that were not passed over."""
        return spikes.consumed_steps(step, self.skipped)

    # ---------------------------------------------------------------------------------------------------- spikes

    @property
    def watches(self) -> bool:
        """Whether spikes are watched for."""
        return self._detector is not None

    def watch(self, step: int, loss: float, *, applied: bool) -> None:
        """Judge the loss of a step, the mean over all ranks, if spikes are watched for: may set `spike`.

        Results come one step late, so one that was found stays until `decide` takes it.
        """
        if self._detector is not None:
            self.spike = self._detector.add(step, loss, applied=applied) or self.spike

    def decide(self) -> tuple[Spike, Rollback | None] | None:
        """What to do about the spike (a collective): go back, or, with None, only say so. None if rank 0 saw none.

        Raises:
            FoldtrainError: if there were too many rollbacks already.
        """
        spike: Spike | None = self._agreement.from_first(self.spike)
        self.spike = None
        if spike is None or self._config is None:
            return None
        if self._config.action == "record":
            return spike, None
        if len(self._decisions) >= self._config.max_rollbacks:
            raise FoldtrainError(
                f"{self._folder}: the loss spiked at step {spike.last} ({spike.loss:.4g}), after "
                f"{len(self._decisions)} rollbacks already (trainer.spikes.max_rollbacks). Lower learning_rate, set "
                "gradient_clipping (accept_changes=true goes on with them), or look at the samples that events.jsonl "
                "names."
            )
        decision: Rollback | None = None
        if self._agreement.rank == 0:
            good = valid_steps(self._checkpoints, self._decisions)
            decision = spikes.decide(spike, good, self._config.window, self._config.skip_steps)
        return spike, self._agreement.from_first(decision)

    @property
    def are_wanted(self) -> bool:
        """Whether a spike is a reason to go back, rather than only to say so."""
        return self._config is not None and self._config.action == "rollback"

    @property
    def decisions(self) -> tuple[Rollback, ...]:
        """All rollbacks so far."""
        return tuple(self._decisions)

    def take(self, decision: Rollback) -> None:
        """Keep to a decision from now on. It has to be on record before."""
        self._decisions.append(decision)


def describe(spike: Spike, decision: Rollback | None) -> dict[str, Any]:
    """A spike and what is done about it, as events.jsonl holds them."""
    numbers = {"loss": _finite(spike.loss), "usual": spike.usual, "limit": spike.limit, "first": spike.first}
    if decision is None:
        return numbers | {"action": "none"}
    return numbers | {"action": "rollback", "back_to": decision.to, "skip": list(decision.skipped)}


def _finite(loss: float) -> float | None:
    return loss if abs(loss) < float("inf") else None


def _remove(folder: str) -> None:
    """Remove a checkpoint that a rollback took back, unless a user marked it."""
    if storage.exists(storage.join(folder, KEEP)):
        return
    storage.remove_file(storage.join(folder, COMPLETE))
    storage.remove_tree(folder)
