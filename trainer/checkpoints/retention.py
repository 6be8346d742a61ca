"""Which checkpoints stay: the newest, every so many steps, the best, and those that a user marked with a file KEEP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.leases.owned_folders import CHECKPOINT_FILE, is_link, remove_checkpoint
from data_pipeline.shards.manifest import first_problem
from data_pipeline.text import yaml_dialect
from trainer.checkpoints.catalog import all_steps, complete_steps, damaged_steps, read_state, step_folder, valid_steps
from trainer.checkpoints.commits import KEEP, is_marked, read_committed
from trainer.checkpoints.index import Index
from trainer.config import KeepBest
from trainer.registry import trained_in, value_at
from trainer.rollback.spikes import Rollback


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


def rule_of(last: int, every: int | None, best: KeepBest | None) -> Retention:
    """The rule of a trainer's `keep_checkpoints`, `keep_every` and `keep_best`."""
    return Retention(last, every, best.metric, best.mode) if best else Retention(last, every)


class _Keeping(BaseModel):
    """Of a trainer's config, what decides which checkpoints are kept."""

    keep_checkpoints: int = 2
    keep_every: int | None = Field(None, gt=0)
    keep_best: KeepBest | None = None


def recorded_rule(folder: str) -> Retention | None:
    """The rule of a stage's newest start, from the config.yaml in its folder; None if there is none."""
    import yaml

    try:
        text = storage.read_bytes(storage.join(folder, "config.yaml"), yaml_dialect.MOST_BYTES)
        config: dict[str, Any] = yaml_dialect.parse(text) or {}
        stage = storage.read_json(storage.join(folder, "settings.json"))["stage"]
        section = value_at(config, trained_in(stage).section)
        trainer = _Keeping.model_validate(section["trainer"]) if section else None
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else f"{type(error).__name__}"
        raise UsageError(
            f"{folder}: config.yaml and settings.json do not say which checkpoints are kept ({reason}): they were cut "
            "or edited; start the stage again, which writes them anew"
        ) from None
    return rule_of(trainer.keep_checkpoints, trainer.keep_every, trainer.keep_best) if trainer else None


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


def removable(checkpoints: str, rule: Retention, decisions: Sequence[Rollback] = ()) -> list[int]:
    """Steps of checkpoints that a rule does not keep, and of unfinished ones older than the newest complete one.

    Younger unfinished ones may be under way, and damaged ones are left for the user. A checkpoint that a rollback took
    back, and that is there because of its file KEEP, is neither among the newest nor the best.

    Args:
        checkpoints: their folder.
        rule: the rule.
        decisions: the rollbacks of the run.
    """
    values = {step: _metric(checkpoints, step, rule.metric) for step in valid_steps(checkpoints, decisions)}
    if not values:
        return []
    stay, newest = kept(values, rule), max(values)
    candidates = [step for step in all_steps(checkpoints) if step < newest and step not in stay]
    return [step for step in candidates if not _is_left(step_folder(checkpoints, step))]


def removable_damaged(checkpoints: str) -> list[int]:
    """Steps of the checkpoints that a start has found damaged, but for those with a file KEEP."""
    folders = {step: step_folder(checkpoints, step) for step in damaged_steps(checkpoints)}
    return [step for step, folder in folders.items() if not _is_for_users(folder)]


def remove_damaged(checkpoints: str) -> list[int]:
    """Remove the checkpoints that a start has found damaged, but for those with a file KEEP. Returns their steps."""
    gone = removable_damaged(checkpoints)
    for step in gone:
        _remove(checkpoints, step)
    return gone


def strays(checkpoints: str, step: int, index: Index) -> list[str]:
    """Names of files in a complete checkpoint that other attempts at it left there.

    Args:
        checkpoints: their folder.
        step: of the checkpoint.
        index: of the checkpoint, which says what is its own.
    """
    own = {name.partition(".")[0] for name in index.files}
    folder = step_folder(checkpoints, step)
    names = [] if is_link(folder) else storage.list_names(folder)
    ranks = [name for name in names if name.startswith("rank_") and CHECKPOINT_FILE.fullmatch(name)]
    return [name for name in ranks if name.partition(".")[0] not in own]


def remove_strays(checkpoints: str, step: int, index: Index) -> list[str]:
    """Remove what `strays` finds, and return it."""
    found = strays(checkpoints, step, index)
    for name in found:
        storage.remove_file(storage.join(step_folder(checkpoints, step), name))
    return found


def all_strays(checkpoints: str, act: Callable[[str, int, Index], list[str]]) -> list[str]:
    """What `strays`, or `remove_strays`, finds in all complete checkpoints whose index is whole."""
    found = []
    for step in complete_steps(checkpoints):
        try:
            index = Index.from_bytes(read_committed(step_folder(checkpoints, step)).index)
        except (UsageError, ValueError):  # damaged or of another format: whose files are whose cannot be told
            continue
        found += act(checkpoints, step, index)
    return found


def _is_left(folder: str) -> bool:
    """Whether only a user, or only `--damaged`, removes a checkpoint."""
    return _is_for_users(folder) or is_marked(folder)


def _is_for_users(folder: str) -> bool:
    """Whether only a user removes a checkpoint: it has a file KEEP, or lies elsewhere and is only linked to."""
    return is_link(folder) or storage.exists(storage.join(folder, KEEP))


def apply(checkpoints: str, rule: Retention, decisions: Sequence[Rollback] = ()) -> list[int]:
    """Remove what a rule does not keep; the marker first, so that nothing half removed is ever taken for complete.

    Returns:
        The steps that were removed.
    """
    gone = removable(checkpoints, rule, decisions)
    for step in gone:
        _remove(checkpoints, step)
    return gone


def _remove(checkpoints: str, step: int) -> None:
    remove_checkpoint(step_folder(checkpoints, step))


def _metric(checkpoints: str, step: int, name: str | None) -> float | None:
    if name is None:
        return None
    value = read_state(checkpoints, step).get("metrics", {}).get(name)
    return float(value) if isinstance(value, int | float) else None
