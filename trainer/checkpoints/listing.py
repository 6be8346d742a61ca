"""What checkpoints there are below a folder. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.checkpoints.damage import DAMAGED, marked_with
from trainer.checkpoints.folder import KEEP, STATE, all_steps, is_complete, latest_step, read_state, step_folder


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
