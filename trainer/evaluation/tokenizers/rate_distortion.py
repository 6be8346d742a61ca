"""Bits of an image against error and distances: a tokenizer at each prefix, and what as many bits are worth without it.

tokenizer     bits of the tokens of each prefix, at log2 of the vocabulary each, not entropy-coded
components    principal components of training images (compressed.py)
jpeg          JPEG files, of whose bits those are counted that are an image's own (compressed.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from model.layout import TokenLayout
from trainer.evaluation.measures import MeasuredRows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.networks.network_rows import FEATURES, Slot
from trainer.evaluation.set_numbers import Reference, is_distance, statistics
from trainer.evaluation.tokenizers.baselines import bits_of
from trainer.evaluation.tokenizers.compressed import feature_row
from trainer.metrics.frechet import frechet_distance
from trainer.metrics.means import RowMeans


@dataclass(frozen=True)
class Point:
    """What a number of bits of an image is worth."""

    budget: int
    """Bits that were allowed."""
    bits: float | None
    """That were used, a mean over images; None where some image does not fit."""
    mse: float | None
    """Mean over images; pixels in [-1, 1]."""
    distances: Mapping[str, float] = field(default_factory=dict)
    """Fréchet distances from the originals by slot of their network, as far as they were measured."""


@dataclass(frozen=True)
class Curve:
    """Points of one way to spend bits."""

    name: str
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return asdict(self)


@dataclass(frozen=True)
class RateDistortion:
    """Curves of one set of images, and what the components are of."""

    curves: tuple[Curve, ...]
    training: dict[str, Any]
    """The images that components were computed from, as JSON (`ImageSet.identity`)."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """What the distances of each slot are called."""

    def to_json(self) -> dict[str, Any]:
        """For evaluation.json."""
        return asdict(self)


def codec_curve(
    name: str,
    rows: MeasuredRows,
    budgets: Sequence[int],
    slots: Sequence[Slot] = (),
    reference: Reference | None = None,
) -> Curve:
    """Means over images, and distances, at each budget into which all of them fit.

    Args:
        name: of the codec.
        rows: of `CompressedRows`.
        budgets: bits of an image, as the rows have them.
        slots: networks that the rows have features of.
        reference: the originals, where there are networks.
    """
    bits, errors = RowMeans(), RowMeans()
    fits_K = np.ones(len(budgets), np.bool_)
    for part in rows.parts("bits", "mse", "fits"):
        bits.update(part["bits"])
        errors.update(part["mse"])
        fits_K &= part["fits"].astype(np.bool_).all(axis=0)
    means = zip(budgets, bits.means.tolist(), errors.means.tolist(), fits_K, strict=True)
    return Curve(
        name,
        tuple(
            Point(budget, used, mse, _distances(rows, budget, slots, reference)) if fits else Point(budget, None, None)
            for budget, used, mse, fits in means
        ),
    )


def _distances(rows: MeasuredRows, budget: int, slots: Sequence[Slot], reference: Reference | None) -> dict[str, float]:
    found = {}
    for slot in slots:
        theirs = None if reference is None else reference.of(slot, FEATURES)
        if theirs is not None:
            found[slot.name] = frechet_distance(statistics(rows, feature_row(slot.name, budget)), theirs)
    return found


def tokenizer_curve(
    numbers: Iterable[Number], layout: TokenLayout, slots: Sequence[Slot] = (), name: str = "tokenizer"
) -> Curve:
    """The squared errors and distances among numbers of a tokenizer, by the bits of their prefixes.

    Args:
        numbers: tokenizer_numbers.py and set_numbers.py; of the images' own tokens.
        layout: of the tokens.
        slots: networks whose distances are taken.
        name: of the curve.
    """
    errors: dict[int, float] = {}
    distances: dict[int, dict[str, float]] = {}
    for each in numbers:
        keep = int(each.measured_of.get("keep", layout.positions))
        if each.metric == "mse":
            errors[keep] = each.value
        for slot in slots:
            if is_distance(each, slot):
                distances.setdefault(keep, {})[slot.name] = each.value
    bits = {keep: bits_of(layout, keep) for keep in errors}
    points = (Point(bits[keep], bits[keep], errors[keep], distances.get(keep, {})) for keep in sorted(errors))
    return Curve(name, tuple(points))
