"""Which checkpoints there are, what became of each, and which of them a start may go on from. Imports no torch.

A start goes on from the newest one that is complete (COMPLETE is there, DAMAGED is not) and that keeps to the rollbacks
on record (`valid_steps`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.checkpoints.commits import COMPLETE, DAMAGED, KEEP, STATE, checked_state, is_marked, marked_with
from trainer.records.jsonl import read_records
from trainer.records.record_shapes import is_event
from trainer.rollback import spikes
from trainer.rollback.spikes import Rollback

_NAME = re.compile(r"step_(\d{8,})")


def step_folder(checkpoints: str, step: int) -> str:
    """Folder of the checkpoint at a step."""
    return storage.join(checkpoints, f"step_{step:08d}")


def all_steps(checkpoints: str) -> list[int]:
    """Steps of all checkpoints, also of unfinished ones, ascending."""
    return sorted(int(match[1]) for name in storage.list_names(checkpoints) if (match := _NAME.fullmatch(name)))


def is_complete(checkpoints: str, step: int) -> bool:
    """Whether all of a checkpoint was written, and no start has found it damaged."""
    return storage.exists(_marker(checkpoints, step)) and not is_marked(step_folder(checkpoints, step))


def _marker(checkpoints: str, step: int) -> str:
    return storage.join(step_folder(checkpoints, step), COMPLETE)


def damaged_steps(checkpoints: str) -> list[int]:
    """Steps of all checkpoints that a start has found damaged, ascending."""
    return [step for step in all_steps(checkpoints) if is_marked(step_folder(checkpoints, step))]


def complete_steps(checkpoints: str) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    return [step for step in all_steps(checkpoints) if is_complete(checkpoints, step)]


def written_steps(checkpoints: str) -> list[int]:
    """Steps of all checkpoints that were complete once, also of those found damaged since, ascending."""
    return [step for step in all_steps(checkpoints) if storage.exists(_marker(checkpoints, step))]


def latest_step(checkpoints: str) -> int | None:
    """The newest complete checkpoint, which a resume loads."""
    return next((step for step in reversed(all_steps(checkpoints)) if is_complete(checkpoints, step)), None)


def read_state(checkpoints: str, step: int) -> dict[str, Any]:
    """state.json of a checkpoint, unchecked; {} if it is not there or cannot be read, which a start calls damage."""
    try:
        return checked_state(storage.read_json(storage.join(step_folder(checkpoints, step), STATE)))
    except (FileNotFoundError, UsageError, ValueError):
        return {}


def decisions_on_record(folder: str) -> list[Rollback]:
    """The rollbacks of a stage, by its folder, in their order."""
    return spikes.recorded(read_records(storage.join(folder, "events.jsonl"), is_event))


def valid_steps(checkpoints: str, decisions: Sequence[Rollback]) -> list[int]:
    """Steps of the complete checkpoints that were made in keeping with all decisions, ascending."""
    steps = complete_steps(checkpoints)
    if not decisions:
        return steps
    return [step for step in steps if spikes.keeps_to(step, _skipped_in(checkpoints, step), decisions)]


def _skipped_in(checkpoints: str, step: int) -> spikes.Ranges:
    """The ranges of steps that a checkpoint's run had passed over."""
    return spikes.from_json(read_state(checkpoints, step).get("skipped_ranges", []))


def what_to_do(checkpoints: str) -> str:
    """The commands that show damaged checkpoints and remove them."""
    stage = checkpoints.rstrip("/").removesuffix("/checkpoints")
    return (
        f"`foldtrain checkpoint ls {stage}` and `foldtrain checkpoint verify {stage}` show what is damaged. Bring the "
        "files back and delete the DAMAGED beside them, or remove these checkpoints with "
        f"`foldtrain checkpoint gc {stage} --damaged` and start again"
    )


@dataclass(frozen=True)
class Listed:
    """One checkpoint, complete or not."""

    step: int
    complete: bool
    damage: str | None
    """What is wrong with it, as a start found; None if nothing was found."""
    bytes: int
    marked: bool
    """Whether it has a file KEEP."""
    world_size: int | None
    zero_stage: int | None
    loss: float | None


def stages(folder: str) -> dict[str, str]:
    """Folders of checkpoints by the stage's name: of one stage, or of all stages of a run.

    Raises:
        UsageError: if there are none.
    """
    own = storage.join(folder, "checkpoints")
    if all_steps(own):
        return {folder.rstrip("/").rsplit("/", 1)[-1]: own}
    below = {name: storage.join(folder, name, "checkpoints") for name in storage.list_names(folder)}
    found = {name: checkpoints for name, checkpoints in below.items() if all_steps(checkpoints)}
    if not found:
        raise UsageError(f"{folder} has no checkpoints: give the folder of a run, or of a stage (RUN/generator)")
    return found


def only_stage(folder: str) -> str:
    """The folder of checkpoints of one stage.

    Raises:
        UsageError: if it is a run with several.
    """
    found = stages(folder)
    if len(found) > 1:
        raise UsageError(f"{folder} has several stages with checkpoints: give one, {' or '.join(found)}")
    return next(iter(found.values()))


def require_step(checkpoints: str, step: int | None) -> int:
    """The step asked for, or the newest complete one.

    Raises:
        UsageError: if there is no such complete checkpoint.
    """
    chosen = latest_step(checkpoints) if step is None else step
    if chosen is None or not is_complete(checkpoints, chosen):
        raise UsageError(f"{checkpoints} has no complete checkpoint" + ("" if step is None else f" at step {step}"))
    return chosen


def list_checkpoints(checkpoints: str) -> list[Listed]:
    """All checkpoints of a stage by step."""
    return [_describe(checkpoints, step) for step in all_steps(checkpoints)]


def _describe(checkpoints: str, step: int) -> Listed:
    folder = step_folder(checkpoints, step)
    files = storage.walk(folder)
    complete = is_complete(checkpoints, step)
    damage = marked_with(folder) if DAMAGED in files else None
    state: dict[str, Any] = read_state(checkpoints, step) if complete else {}
    if complete and not state:
        damage = f"{storage.join(folder, STATE)}: it cannot be read"
    return Listed(
        step,
        complete,
        damage,
        sum(files.values()),
        KEEP in files,
        state.get("world_size"),
        state.get("zero_stage"),
        state.get("metrics", {}).get("loss"),
    )
