"""Which checkpoints stay: the newest, every so many steps, the best, and those that a user marked with a file KEEP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from data_pipeline import storage
from trainer.checkpoints.folder import (
    COMPLETE,
    KEEP,
    STATE,
    all_steps,
    complete_steps,
    step_folder,
)


@dataclass(frozen=True)
class Retention:
    """A rule. A checkpoint stays if any part of it says so.

    Args:
        last: the newest so many; at least one.
        every: multiples of so many steps, for ever; None for none.
        metric: name of the number by which the best one stays, too; None for none.
        mode: whether the best has the smallest number, or the largest.
    """

    last: int
    every: int | None = None
    metric: str | None = None
    mode: Literal["min", "max"] = "min"


def kept(complete: Mapping[int, float | None], rule: Retention) -> set[int]:
    """The steps that a rule keeps.

    Args:
        complete: for each complete checkpoint, the value of the rule's metric, or None if it has none.
        rule: the rule.
    """
    steps = sorted(complete)
    stay = set(steps[-max(rule.last, 1) :])
    if rule.every:
        stay |= {step for step in steps if step % rule.every == 0}
    valued = {step: value for step, value in complete.items() if value is not None}
    if rule.metric and valued:
        sign = 1 if rule.mode == "min" else -1
        stay.add(min(valued, key=lambda step: (sign * valued[step], -step)))
    return stay


def removable(checkpoints: str, rule: Retention) -> list[int]:
    """Steps of checkpoints that a rule does not keep, and of unfinished ones older than the newest complete one.

    Younger unfinished ones may be under way.
    """
    values = {step: _metric(checkpoints, step, rule.metric) for step in complete_steps(checkpoints)}
    if not values:
        return []
    stay, newest = kept(values, rule), max(values)
    candidates = [step for step in all_steps(checkpoints) if step < newest and step not in stay]
    return [step for step in candidates if not storage.exists(storage.join(step_folder(checkpoints, step), KEEP))]


def apply(checkpoints: str, rule: Retention) -> list[int]:
    """Remove what a rule does not keep; the marker first, so that nothing half removed is ever taken for complete.

    Returns:
        The steps that were removed.
    """
    gone = removable(checkpoints, rule)
    for step in gone:
        _remove(checkpoints, step)
    return gone


def forget_after(checkpoints: str, step: int) -> list[int]:
    """Remove all checkpoints after a step, unfinished ones too: a run that goes back must not find them again.

    Nothing may be under way. One rank calls it. A file KEEP does not help: it would be what a resume loads.

    Returns:
        The steps that were removed.
    """
    gone = [later for later in all_steps(checkpoints) if later > step]
    for later in gone:
        _remove(checkpoints, later)
    return gone


def _remove(checkpoints: str, step: int) -> None:
    folder = step_folder(checkpoints, step)
    storage.remove_file(storage.join(folder, COMPLETE))
    storage.remove_tree(folder)


def _metric(checkpoints: str, step: int, name: str | None) -> float | None:
    if name is None:
        return None
    metrics = storage.read_json(storage.join(step_folder(checkpoints, step), STATE)).get("metrics", {})
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) else None
