"""What the stages of runs were asked, by dotted names, and what of it differs between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.text.printable import printable
from trainer.registry import STAGES
from trainer.report.collect import used_config

LONGEST = 500
"""Characters of a value that are compared and shown."""

Settings = dict[tuple[str, str], str]
"""Values as text, by the stage's folder and the dotted name in its config."""


@dataclass(frozen=True)
class DifferingSetting:
    """A setting that is not the same in all runs."""

    stage: str
    """Its folder."""
    name: str
    """Dotted: tokenizer.trainer.steps."""
    values: tuple[str | None, ...]
    """Of each run; None where the run has no such setting."""


def dotted(record: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The values of a nested record by dotted name, as text that can be shown."""
    for name, value in record.items():
        path = f"{prefix}{printable(str(name))}"
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{path}.")
        else:
            yield path, printable(str(value)[:LONGEST])


def recorded_settings(run: str) -> tuple[Settings, list[str]]:
    """What each stage of a run has recorded that it was asked, and what could not be read, in words."""
    found: Settings = {}
    problems = []
    for stage in (stage for stage in STAGES if stage.product != "results"):
        try:
            used = used_config(run, stage)
        except UsageError as error:
            problems.append(str(error))
            continue
        found |= {(stage.folder, name): value for name, value in dotted(used or {})}
    return found, problems


def differing_settings(runs: Sequence[Settings]) -> list[DifferingSetting]:
    """The settings that are not the same in all runs, in the order of the stages."""
    names = dict.fromkeys(name for settings in runs for name in settings)
    rows = ((name, tuple(settings.get(name) for settings in runs)) for name in names)
    order = {stage.folder: place for place, stage in enumerate(STAGES)}
    found = [DifferingSetting(*name, values) for name, values in rows if len(set(values)) > 1]
    return sorted(found, key=lambda each: order[each.stage])
