"""Which checkpoints keep to the rollbacks of a run; the others were taken back, and count for nothing. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline import storage
from trainer.checkpoints.folder import complete_steps, read_state
from trainer.records.jsonl import read_records
from trainer.records.record_shapes import is_event
from trainer.rollback import spikes
from trainer.rollback.spikes import Rollback


def decisions_on_record(folder: str) -> list[Rollback]:
    """The rollbacks of a stage, by its folder, in their order."""
    return spikes.recorded(read_records(storage.join(folder, "events.jsonl"), is_event))


def steps_on_course(checkpoints: str, decisions: Sequence[Rollback]) -> list[int]:
    """Steps of the complete checkpoints that were made in keeping with all decisions, ascending."""
    steps = complete_steps(checkpoints)
    if not decisions:
        return steps
    return [step for step in steps if spikes.on_course(step, _skipped_in(checkpoints, step), decisions)]


def _skipped_in(checkpoints: str, step: int) -> spikes.Ranges:
    """The ranges of steps that a checkpoint's run had passed over."""
    return spikes.from_json(read_state(checkpoints, step).get("skipped_ranges", []))
