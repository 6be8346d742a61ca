"""Which stages a job runs, in their order, and how each of them stands in its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.config.errors import closest
from cluster.config.run import RunConfig
from cluster.pool.scale import PROGRESS
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.leases.owned_folders import SETTINGS
from data_pipeline.shards.manifest import MANIFEST_NAME
from trainer.registry import QUICKSTART, STAGES, RunStage, stage_named

ALL = ("all", QUICKSTART)
"""What `--stage` calls all stages that the config has anything for."""

Standing = Literal["finished", "given", "begun", "to do", "unknown"]


@dataclass(frozen=True)
class StageStanding:
    """A stage of a run."""

    command: str
    standing: Standing
    """`given`: the run takes its product from elsewhere; `unknown`: its place cannot be reached from here."""
    place: str
    """URI of what shows it; empty for a stage that runs again whenever it is asked."""

    @property
    def is_skipped(self) -> bool:
        """Whether a job passes it over."""
        return self.standing in {"finished", "given"}


def applies(stage: RunStage, config: RunConfig) -> bool:
    """Whether a stage has anything to do in a config."""
    section: Any = config.section(stage.section) if stage.optional else None
    wanted = not stage.optional or (section is not None and getattr(section, "timm", None) is None)
    return wanted or config.given(stage.folder) is not None


def chosen_stages(asked: Sequence[str], config: RunConfig) -> tuple[str, ...]:
    """The stages that `--stage` names, each once, in the order in which they are run.

    Args:
        asked: names, or lists of them with commas; `all` for those that the config has anything for.
        config: of the run.

    Raises:
        UsageError: if one is unknown; it names the one that was probably meant.
    """
    names = [name.strip() for text in asked for name in text.split(",") if name.strip()]
    known = [stage.command for stage in STAGES]
    for name in names:
        if name not in known and name not in ALL:
            near = closest(name, [*known, *ALL])
            hint = f"did you mean {near}?" if near else f"choose from {', '.join([*ALL, *known])}"
            raise UsageError(f"--stage {name[:80]}: there is no such stage; {hint}")
    if not names:
        raise UsageError(f"--stage is empty: choose from {', '.join([*ALL, *known])}")
    wanted = set(names)
    if wanted & set(ALL):
        wanted |= {stage.command for stage in STAGES if applies(stage, config)}
    return tuple(name for name in known if name in wanted)


def workers_of(config: RunConfig, stage: str) -> tuple[int, int]:
    """The fewest and the most workers of a stage, by its command; 1 of one that has none."""
    found = stage_named(stage)
    if found.trains:
        return config.cluster.fewest_workers, config.cluster.most_workers
    if found.product == "shards":
        section: Any = config.section(found.section)
        return section.min_workers, section.max_workers
    return 1, 1


def standing(config: RunConfig, stages: Sequence[str]) -> list[StageStanding]:
    """How stages stand, by what storage holds now. Their own settings are compared when they run."""
    return [_standing(config, stage_named(name)) for name in stages]


def first_unfinished(stages: Sequence[StageStanding]) -> str | None:
    """The stage at which a job begins; None if there is nothing left to do."""
    return next((stage.command for stage in stages if not stage.is_skipped), None)


def _standing(config: RunConfig, stage: RunStage) -> StageStanding:
    if stage.product == "results":
        return StageStanding(stage.command, "to do", "")
    if given := config.given(stage.folder):
        return StageStanding(stage.command, "given", given)
    product = storage.join(config.product(stage.folder), "card.json" if stage.trains else MANIFEST_NAME)
    begun = storage.join(config.folder(stage.folder), SETTINGS if stage.trains else PROGRESS)
    try:
        found: Standing = "finished" if storage.exists(product) else "begun" if storage.exists(begun) else "to do"
    except (FoldtrainError, OSError):
        found = "unknown"
    return StageStanding(stage.command, found, product)
