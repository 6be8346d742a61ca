"""What a report is made of: plain values and PNG files, so that it can be built and tested without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.evaluation.naming.numbers import Number
from trainer.records import columns
from trainer.records.columns import Column, Columns
from trainer.report.sweeps import SweepPoint

Record = Mapping[str, Any]
"""One line of metrics.jsonl or events.jsonl."""


BOOKKEEPING = frozenset(
    [
        *("time", "step", "steps", "samples", "epoch", "crop_epoch", "loss", "learning_rate", "grad_norm"),
        *("samples_per_second", "tokens_per_second", "mfu", "eta_seconds", "skipped_steps", "passed_over_steps"),
        *("step_seconds", "step_seconds_p50", "step_seconds_p95", "step_seconds_max", "window_steps", "window_seconds"),
        *("data_wait_share", "checkpoint_seconds", "validation_seconds", "goodput", "loss_scale"),
        *("memory_bytes", "cuda_allocated_bytes", "cuda_reserved_bytes"),
    ]
)
"""Keys of metrics.jsonl that are no terms of the loss."""


def is_shown(name: str) -> bool:
    """Whether a number of metrics.jsonl is drawn, or summed up."""
    drawn = {"loss", "samples_per_second", "learning_rate", "epoch", "crop_epoch"}
    return is_term(name) or name in drawn or name.startswith("grad_norm")


def is_term(name: str) -> bool:
    """Whether a number of metrics.jsonl is one of the training itself; looks at held-out images have charts apart."""
    return name not in BOOKKEEPING and not name.startswith(("validation_", "grad_norm", "loss_scale"))


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
    metrics: Columns = field(default_factory=dict)
    """The numbers of metrics.jsonl by name, in order of steps, one row a step; NaN where a record has none."""
    events: tuple[Record, ...] = ()

    @classmethod
    def of(cls, stage: str, metrics: Sequence[Record], events: tuple[Record, ...] = ()) -> StageRecords:
        """From records, of which the last of each step counts."""
        return cls(stage, in_order_of_steps(columns.from_records(metrics)), events)

    @property
    def steps(self) -> Column:
        """The step of each row."""
        return self.metrics.get("step", np.empty(0))

    def numbers(self, name: str) -> Column:
        """Those that were recorded under a name, in order of steps."""
        found = self.metrics.get(name, np.empty(0))
        return found[~np.isnan(found)]

    def has(self, name: str) -> bool:
        """Whether any number was recorded under a name."""
        return name in self.metrics and not np.isnan(self.metrics[name]).all()

    def count(self, event: str) -> int:
        """How often something happened."""
        return sum(record.get("event") == event for record in self.events)

    @property
    def until_first_step(self) -> float | None:
        """Seconds from the command to its first step, of all starts together; None if that is not on record."""
        found = [record.get("seconds") for record in self.events if record.get("event") == "first_step"]
        seconds = [each for each in found if isinstance(each, int | float) and not isinstance(each, bool)]
        return float(sum(seconds)) if seconds else None


def in_order_of_steps(metrics: Columns) -> Columns:
    """One row a step, in order; of a step that was repeated after a restart, the last."""
    step = metrics["step"]
    if np.all(np.diff(step) > 0):
        return metrics
    order = np.argsort(step, kind="stable")
    is_last = np.append(np.diff(step[order]) > 0, True)
    return {name: column[order[is_last]] for name, column in metrics.items()}


@dataclass(frozen=True)
class Baselines:
    """What the bits of each prefix are worth without the tokenizer."""

    mean_image: float
    """Squared error of the mean of the training images."""
    square: int
    """Side of the squares that principal components are of, in pixels."""
    bits: tuple[int, ...]
    """Of each prefix."""
    mse: tuple[float, ...]
    """Squared error of principal components of as many bits."""


@dataclass(frozen=True)
class Shared:
    """Mutual information of two folds in each group, in bits."""

    folds: tuple[int, int]
    plain: tuple[float, ...]
    shuffled: tuple[float, ...]
    entropy: tuple[float, ...]


@dataclass(frozen=True)
class Memorization:
    """How near the nearest training images of samples are."""

    network: str
    """By whose features."""
    samples: int
    held_out: int
    training_images: int
    threshold: float
    """Distance within which 1 % of the held-out images are."""
    quantiles_of_samples: tuple[float, ...]
    """Of the distances, at even steps from the least to the largest."""
    quantiles_of_held_out: tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """Of a film strip."""

    step: int
    png: bytes
    stage: str = "tokenizer"
    """Whose it is."""


def film_frames(film: Sequence[Frame]) -> list[dict[str, str]]:
    """What the template needs of frames."""
    return [
        {"step": f"{each.step:,}", "png": "data:image/png;base64," + base64.b64encode(each.png).decode()}
        for each in film
    ]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured (evaluation.json). None where it was not measured."""

    prefixes: tuple[int, ...] = ()
    """Numbers of leading positions from which images were decoded."""
    mse_of_prefixes: tuple[float, ...] = ()
    """Mean squared error of what was decoded from each; pixels in [-1, 1]."""
    psnr_of_prefixes: tuple[float, ...] = ()
    ssim_of_prefixes: tuple[float, ...] = ()
    baselines: Baselines | None = None
    perplexity_of_positions: tuple[tuple[float, ...], ...] = ()
    """Of each fold, codes that would be as uncertain at each position if all were used equally."""
    mutual_information: tuple[Shared, ...] = ()
    probe: Mapping[str, float] = field(default_factory=dict)
    """Accuracy of a linear layer on each branch's mean latent, and on raw pixels."""
    reconstruction_distance: float | None = None
    """Fréchet distance of reconstructions in the teacher's feature space."""
    generation_distance: float | None = None
    """Fréchet distance of generated images in the teacher's feature space."""
    samples: int = 0
    """Generated images."""
    class_accuracy: float | None = None
    """Share of samples that the judge gives to the class they were asked for."""
    class_accuracy_per_class: tuple[float | None, ...] = ()
    """By label; None for a class of which no sample was drawn."""
    judge_accuracy_on_real: float | None = None
    """Share of real validation images that the judge gets right."""
    codebook_use: tuple[tuple[float, ...], ...] = ()
    """Of each fold, in each group: codes that were used, as a share of the codebook."""
    class_names: tuple[str, ...] = ()
    fingerprints: Record = field(default_factory=dict)
    """Of the networks and the data that were judged."""
    sampling: Record = field(default_factory=dict)
    """How the samples that were judged were drawn."""
    groups: tuple[int, ...] = ()
    """Positions of each group of the tokenizer that was judged; empty if unknown."""
    fold_names: tuple[str, ...] = ()
    """What its folds are called; empty if unknown."""
    vocabularies: tuple[int, ...] = ()
    """Codes of each fold of it; empty if unknown."""
    real_images: int | None = None
    """Real images that were compared with; None if that is not on record."""
    held_out: bool = True
    """Whether nothing was trained on them."""
    files: Record = field(default_factory=dict)
    """sha256 of the pictures that belong to it, by name."""
    inputs: Record = field(default_factory=dict)
    """URIs of what came from elsewhere, by what it is."""
    memorization: Memorization | None = None
    numbers: tuple[Number, ...] = ()
    """All numbers with their names; empty of earlier versions."""

    @property
    def real(self) -> str:
        """The real images, for people."""
        count = f"{self.real_images:,} " if self.real_images else ""
        return f"{count}{'held-out images' if self.held_out else 'training images (none were held out)'}"


@dataclass(frozen=True)
class Samples:
    """What `sample` drew (samples/samples.json)."""

    png: bytes
    """A row for each class."""
    sampling: Record = field(default_factory=dict)
    """How they were drawn."""
    fingerprints: Record = field(default_factory=dict)
    """Of the networks that drew them."""
    class_names: tuple[str, ...] = ()
    """Of the rows; empty if they are not on record."""


@dataclass(frozen=True)
class StageConfig:
    """What a stage was asked, as it has recorded it."""

    stage: str
    text: str
    """The sections of its config that it used, as YAML; of training, since its newest start."""
    changes: tuple[str, ...] = ()
    """What was otherwise before that, and up to which step."""


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
    configs: tuple[StageConfig, ...] = ()
    """What each stage was asked."""
    reconstructions_png: bytes | None = None
    """Originals beside their reconstructions at every number of scales."""
    nearest_png: bytes | None = None
    """Samples beside the training images that are nearest to them."""
    film: tuple[Frame, ...] = ()
    """While the tokenizer trained, reconstructions of the same images; while the generator trained, what it drew of the
    same seeds and classes; of each in order of steps."""
    samples: Samples | None = None
    """Samples, if there are any whose record is there."""
    notes: tuple[str, ...] = ()
    """What does not belong together, for people."""
    sweeps: tuple[tuple[SweepPoint, ...], ...] = ()
    """What is measured of samples at many settings of sampling, sweep by sweep."""

    @property
    def name(self) -> str:
        """The last part of the run's URI."""
        return self.run.rstrip("/").rsplit("/", 1)[-1]

    @property
    def seconds(self) -> float:
        """Time of all stages."""
        return sum(stage.seconds for stage in self.stages)
