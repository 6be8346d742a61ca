"""Numbers of a set of images against a reference, from rows of networks' features.

Every number is computed from all rows in the order of the images, in float64: the same rows give the same digits.
Shapes: B images of a part, N of a set, D channels of a feature.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.measures import LABEL, MeasuredRows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.networks.network_rows import FEATURES, Slot, row_name
from trainer.evaluation.row_files import StoredRows
from trainer.metrics.confidence import bootstrap_error
from trainer.metrics.frechet import FeatureStatistics, FeatureSums, FrechetDistance, frechet_distance
from trainer.metrics.inception_score import SEED, SPLITS, InceptionScore
from trainer.metrics.manifold import NEIGHBOURS, precision_recall

SPATIAL, LOGITS = "spatial", "logits"
"""Further outputs of networks (feature_networks.py)."""


def statistics(rows: MeasuredRows, name: str) -> FeatureStatistics:
    """The Gaussian of an array of all images."""
    sums = FeatureSums()
    for part in rows.parts(name):
        sums.update(part[name])
    return sums.statistics()


@dataclass
class Reference:
    """What images are compared with: rows of the same networks, or statistics that somebody has published."""

    named: dict[str, Any]
    """What it is, for `measured_by`: reference, and crop."""
    rows: StoredRows | None = None
    given: Mapping[str, FeatureStatistics] = field(default_factory=dict)
    """Published statistics by output, in place of those of the rows."""
    _known: dict[str, FeatureStatistics] = field(default_factory=dict, repr=False)

    def of(self, slot: Slot, output: str) -> FeatureStatistics | None:
        """The statistics of a network's output; None where there are none. Published ones are of Inception."""
        if output in self.given and slot.config.kind == "inception":
            return self.given[output]
        name = f"{slot.name}.{output}"
        if name not in self._known and self.rows is not None and name in self.rows.names:
            self._known[name] = statistics(self.rows, name)
        return self._known.get(name)


@dataclass(frozen=True)
class Naming:
    """What all numbers of a set are called by."""

    of: dict[str, Any]
    """`measured_of`."""
    rounding: str

    def number(
        self, metric: str, value: float, images: int, by: Mapping[str, Any], plus_minus: float | None = None
    ) -> Number:
        """A number with its name."""
        measured_by = {"rounding": self.rounding} | dict(by)
        return Number(metric, value, images, measured_by, self.of, plus_minus)


_DISTANCES = {FEATURES: ("fid", "frechet_distance"), SPATIAL: ("sfid", "spatial_frechet_distance")}
"""Outputs, and how their distance is called: of the published Inception, and of other networks."""
BLOCKS = 20
"""Disjoint blocks of images that a bootstrap draws from."""


@dataclass(frozen=True)
class MetricOptions:
    """What can be chosen of metrics."""

    splits: int = SPLITS
    """Of the Inception score."""
    resamples: int = 0
    """Of the bootstrap that gives a Fréchet distance its standard error; 0 for none."""
    precision_recall: bool = True
    """Whether both are computed, which takes images times images: 10 minutes of a core for 50,000 at 2,048 features."""


def set_numbers(
    slots: Iterable[Slot],
    rows: StoredRows,
    reference: Reference,
    naming: Naming,
    options: MetricOptions | None = None,
) -> Iterator[Number]:
    """All that a set is compared with a reference by, in the features of each network.

    Distances of the published Inception are called FID and sFID; those of others carry its name. Inception scores are
    of Inceptions alone; precision and recall need the images of the reference.
    """
    options = options or MetricOptions()
    for slot in slots:
        for output in _DISTANCES:
            theirs = reference.of(slot, output) if f"{slot.name}.{output}" in rows.names else None
            if theirs is not None:
                yield _distance(slot, output, rows, theirs, reference, naming, options.resamples)
        if slot.config.kind == "inception":
            yield _inception_score(slot, rows, naming, min(options.splits, rows.count))
        if options.precision_recall:
            yield from _precision_and_recall(slot, rows, reference, naming)


def _distance(
    slot: Slot,
    output: str,
    rows: StoredRows,
    theirs: FeatureStatistics,
    reference: Reference,
    naming: Naming,
    resamples: int,
    keep: int | None = None,
) -> Number:
    metric, name = _DISTANCES[output][not slot.is_fid], row_name(slot.name, output, keep)
    value = frechet_distance(statistics(rows, name), theirs)
    by = dict(reference.named) | {"network": slot.identity}
    if not resamples or rows.count < 2 * BLOCKS:
        return naming.number(metric, value, rows.count, by)
    column, size = rows.column(name), rows.count // BLOCKS
    blocks = [functools.partial(_block, column[at * size : (at + 1) * size], theirs) for at in range(BLOCKS)]
    error = bootstrap_error(blocks, lambda: FrechetDistance(theirs), resamples)
    by |= {"protocol": {"standard_error": f"bootstrap, {resamples} resamples of {BLOCKS} blocks"}}
    return naming.number(metric, value, rows.count, by, error)


def is_distance(number: Number, slot: Slot) -> bool:
    """Whether a number is the Fréchet distance in the features of a slot's network."""
    return number.metric in _DISTANCES[FEATURES] and number.measured_by.get("network") == slot.identity


def _block(features_BD: npt.NDArray[np.floating], theirs: FeatureStatistics) -> FrechetDistance:
    found = FrechetDistance(theirs)
    found.update(features_BD)
    return found


def prefix_distances(
    slots: Iterable[Slot],
    rows: StoredRows,
    reference: Reference,
    naming: Naming,
    prefixes: Sequence[int],
    options: MetricOptions | None = None,
) -> Iterator[Number]:
    """The Fréchet distance of what each prefix of the tokens gives, in the features of each network.

    Args:
        slots: of the networks.
        rows: of a tokenizer that was measured with `of_prefixes` (tokenizer_rows.py).
        reference: the originals.
        naming: of the reconstructions; `keep` is added.
        prefixes: numbers of leading positions, without that of all.
        options: of the bootstrap.
    """
    options = options or MetricOptions()
    for slot in slots:
        theirs = reference.of(slot, FEATURES)
        if theirs is None:
            continue
        for keep in prefixes:
            named = replace(naming, of=naming.of | {"keep": keep})
            yield _distance(slot, FEATURES, rows, theirs, reference, named, options.resamples, keep)


def _inception_score(slot: Slot, rows: StoredRows, naming: Naming, splits: int) -> Number:
    score = InceptionScore(rows.count, splits)
    for part in rows.parts(name := f"{slot.name}.{LOGITS}"):
        score.update(part[name])
    protocol: dict[str, Any] = {"splits": splits, "seed": SEED}
    error = score.deviation() / math.sqrt(splits) if splits > 1 else None
    protocol |= {"standard_error": "deviation of the splits by √splits"} if splits > 1 else {}
    by = {"network": slot.identity, "protocol": protocol}
    return naming.number("inception_score", score.compute(), rows.count, by, error)


def _precision_and_recall(slot: Slot, rows: StoredRows, reference: Reference, naming: Naming) -> Iterator[Number]:
    """Both, where the reference has images, and both sets have enough of them."""
    real, name = reference.rows, f"{slot.name}.{FEATURES}"
    if real is None or name not in real.names or min(rows.count, real.count) <= NEIGHBOURS:
        return
    found = precision_recall(real.column(name), rows.column(name))
    by = dict(reference.named) | {"network": slot.identity}
    by |= {"protocol": {"neighbours": NEIGHBOURS, "reference_images": real.count}}
    yield naming.number("precision", found.precision, rows.count, by)
    yield naming.number("recall", found.recall, rows.count, by)


@dataclass(frozen=True)
class Judge:
    """A classifier that says which class an image is."""

    slot: Slot
    classes: tuple[int, ...] | None = None
    """Its own class for each label of the images; None where they are the same."""

    def is_right(self, rows: MeasuredRows, top: int = 1) -> npt.NDArray[np.bool_]:
        """Whether the class of each image is among the `top` likeliest, [N]; False of an image without a class."""
        name = f"{self.slot.name}.{LOGITS}"
        return np.concatenate([self._is_right(part[name], part[LABEL], top) for part in rows.parts(name, LABEL)])

    def _is_right(
        self, logits_BK: npt.NDArray[np.floating], label_B: npt.NDArray[np.int64], top: int
    ) -> npt.NDArray[np.bool_]:
        asked_B1 = (label_B if self.classes is None else np.asarray(self.classes)[label_B])[:, None]
        logit_B1 = np.take_along_axis(logits_BK, np.maximum(asked_B1, 0), axis=1)
        is_before_BK = (logits_BK == logit_B1) & (np.arange(logits_BK.shape[1]) < asked_B1)
        likelier_B = ((logits_BK > logit_B1) | is_before_BK).sum(axis=1)
        found: npt.NDArray[np.bool_] = (label_B >= 0) & (likelier_B < top)
        return found


def accuracy_numbers(judge: Judge, rows: MeasuredRows, naming: Naming) -> Iterator[Number]:
    """The share of images whose asked class a judge sees; by a judge with classes of its own among its top 5, too."""
    for metric, top in (("class_accuracy", 1), ("class_accuracy_top5", 5))[: 1 if judge.classes is None else 2]:
        share, error = _share(judge.is_right(rows, top))
        yield naming.number(metric, share, rows.count, {"network": judge.slot.identity}, error)


def real_accuracy_number(judge: Judge, real: Reference) -> Number:
    """The share of the reference's own images of which a judge finds the class: what samples can be expected to reach.

    Raises:
        ValueError: if the reference has no rows.
    """
    if real.rows is None:
        raise ValueError("published statistics have no images to judge")
    share, error = _share(judge.is_right(real.rows))
    of = {"images": real.named["reference"]}
    by = {"crop": real.named.get("crop"), "network": judge.slot.identity}
    return Number("class_accuracy_of_real_images", share, real.rows.count, by, of, error)


def _share(right_N: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """With its standard error."""
    return float(right_N.mean()), float(right_N.std() / math.sqrt(len(right_N)))


def drawn_of(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """What drawn images are, for `measured_of`, from the record of what made them (sampling.json)."""
    known = {"seed", "sampling", "weights", "generator", "encoder", "decoder", "labels", "rounding"}
    return {
        "generator": {"sha256": made_by["generator"]},
        "weights": made_by["weights"],
        "sampling": made_by["sampling"],
        "seed": made_by["seed"],
        "labels": made_by["labels"],
        "tokenizer": {"encoder": made_by["encoder"], "decoder": made_by["decoder"]},
    } | {name: value for name, value in made_by.items() if name not in known}
