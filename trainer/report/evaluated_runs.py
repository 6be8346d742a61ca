"""Runs that are compared: what each has on record of its numbers, its hours, its settings and its samples.

A file of numbers alone, of a paper for instance, is one without hours, settings and samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.evaluation.naming.numbers import Number, numbers_file, read_numbers
from trainer.report.collect import read_samples, stage_times
from trainer.report.data import Samples
from trainer.report.settings import Settings, recorded_settings

_EVALUATION = "/evaluation.json"
_HOUR = 3600.0


@dataclass(frozen=True)
class EvaluatedRun:
    """One of the runs."""

    place: str
    """As it was given: a run, or a file of numbers."""
    numbers: tuple[Number, ...]
    hours: dict[str, float] = field(default_factory=dict)
    """Of each stage that was run there."""
    settings: Settings = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """What could not be read, in words."""

    @property
    def name(self) -> str:
        """The place without the file that every run has."""
        return self.place.rstrip("/").removesuffix(_EVALUATION)

    @property
    def folder(self) -> str | None:
        """Of the run; None for a file of numbers alone."""
        return None if self.name.endswith(".json") else self.name

    @property
    def all_hours(self) -> float | None:
        """Of all stages; None if none is on record."""
        return sum(self.hours.values()) if self.hours else None


def read_run(place: str, *, settings: bool = True) -> EvaluatedRun:
    """What is on record at a place.

    Args:
        place: a run, or a file of numbers; of a run's own file it is the run.
        settings: whether those are read, too, which takes a file of each stage.

    Raises:
        FileNotFoundError: if it has no numbers.
        UsageError: if they are not what `evaluate` writes; it names the file.
    """
    numbers = read_numbers(numbers_file(place.rstrip("/")))
    folder = EvaluatedRun(place, numbers).folder
    if folder is None:
        return EvaluatedRun(place, numbers)
    recorded, problems = recorded_settings(folder) if settings else ({}, [])
    try:
        hours = {each.stage: each.seconds / _HOUR for each in stage_times(storage.join(folder, "stages.json"))}
    except UsageError as error:
        hours, problems = {}, [*problems, str(error)]
    return EvaluatedRun(place, numbers, hours, recorded, tuple(problems))


def read_same_samples(runs: Sequence[EvaluatedRun]) -> tuple[list[Samples], str]:
    """The grid of samples of each run, if all are of the same seed and classes, drawn with the same guidance.

    Returns:
        The samples and an empty text; or none, and why they cannot stand side by side.
    """
    found: list[Samples] = []
    for run in runs:
        if run.folder is None:
            return [], f"{run.name} is a file of numbers, and has no samples"
        try:
            samples = read_samples(run.folder)
        except UsageError as error:
            return [], str(error)
        if samples is None:
            return [], f"{run.name} has no samples/grid.png with its samples.json: draw them (foldtrain sample)"
        found.append(samples)
    for run, samples in zip(runs[1:], found[1:], strict=True):
        if differing := list(_other_draws(found[0], samples)):
            return [], f"those of {run.name} were drawn otherwise than those of {runs[0].name}: {', '.join(differing)}"
    return found, ""


def _other_draws(first: Samples, second: Samples) -> Iterator[str]:
    for key in ("seed", "classes", "samples_per_class", "guidance"):
        one, other = first.sampling.get(key), second.sampling.get(key)
        if one != other:
            yield f"{key} {_shown(other)} and not {_shown(one)}"
    if first.class_names != second.class_names:
        yield "the names of the classes differ"


def _shown(value: object) -> str:
    return "all" if value is None else str(value)[:100]
