"""What a report is made of: plain values and PNG files, so that it can be built and tested without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]
"""One line of metrics.jsonl or events.jsonl."""


@dataclass(frozen=True)
class StageTime:
    """How long a stage took (stages.json)."""

    stage: str
    seconds: float
    items: int
    """What it worked through: images, samples, steps, as `unit` says."""
    unit: str


@dataclass(frozen=True)
class StageRecords:
    """What a training stage wrote down."""

    stage: str
    metrics: tuple[Record, ...] = ()
    """In order of steps, one record a step."""
    events: tuple[Record, ...] = ()

    def count(self, event: str) -> int:
        """How often something happened."""
        return sum(record.get("event") == event for record in self.events)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured (evaluation.json). None where it was not measured."""

    mse_per_scale: tuple[float, ...] = ()
    """Mean squared error of reconstructions from the first scale, the first two, and so on; pixels in [-1, 1]."""
    reconstruction_distance: float | None = None
    """Fréchet distance of reconstructions in the teacher's feature space."""
    generation_distance: float | None = None
    """Fréchet distance of generated images in the teacher's feature space."""
    samples: int = 0
    """Generated images."""
    class_accuracy: float | None = None
    """Share of samples that the judge gives to the class they were asked for."""
    class_accuracy_per_class: tuple[float, ...] = ()
    judge_accuracy_on_real: float | None = None
    """Share of real validation images that the judge gets right."""
    codebook_use: tuple[tuple[float, ...], ...] = ()
    """Of each branch, at each scale: codes that were used, as a share of the codebook."""
    class_names: tuple[str, ...] = ()
    fingerprints: Record = field(default_factory=dict)
    sampling: Record = field(default_factory=dict)


@dataclass(frozen=True)
class ReportData:
    """All that a report shows."""

    run: str
    """URI of the run."""
    created: str
    """When the report was made, for people."""
    evaluation: Evaluation
    stages: tuple[StageTime, ...] = ()
    records: tuple[StageRecords, ...] = ()
    config_yaml: str = ""
    """The resolved config."""
    scales: tuple[int, ...] = ()
    """Side of the token grid at each scale; empty if unknown."""
    codebook_size: int | None = None
    """Codes of each branch."""
    reconstructions_png: bytes | None = None
    """Originals beside their reconstructions at every number of scales."""
    samples_png: bytes | None = None
    """Samples, a row for each class."""

    @property
    def name(self) -> str:
        """The last part of the run's URI."""
        return self.run.rstrip("/").rsplit("/", 1)[-1]

    @property
    def seconds(self) -> float:
        """Time of all stages."""
        return sum(stage.seconds for stage in self.stages)
