"""Numbers of a tokenizer from the rows of its measure (tokenizer_measure.py), in one pass and constant memory.

    mse, psnr, ssim, lpips, …                  means over images; ± one standard error
    code_use, code_perplexity, dead_codes      of each branch, the first two at each scale

Sums are in float64 and grow image by image, so however the rows are cut into parts, the digits are the same.

Shapes: B images of a part, K prefixes, L positions, F folds (branches), G groups (scales), V codes of a fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from model.layout import TokenLayout
from trainer.evaluation.measures import MeasuredRows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.tokenizers.codes import THRESHOLD, code_use, count_codes
from trainer.evaluation.tokenizers.tokenizer_measure import QUALITIES
from trainer.metrics.means import RowMeans

Record = dict[str, Any]


class CodeCounts:
    """How often each code of each fold was chosen in each group."""

    def __init__(self, layout: TokenLayout) -> None:
        self._layout = layout
        self.hits = [np.zeros((len(layout.groups), codes), np.int64) for codes in layout.vocabularies]

    def update(self, tokens_BLF: npt.NDArray[np.integer]) -> None:
        """Add images."""
        import torch

        tokens = torch.from_numpy(tokens_BLF.astype(np.int64))
        for hits_GV, found in zip(self.hits, count_codes(tokens, self._layout), strict=True):
            hits_GV += found.numpy()


@dataclass(frozen=True)
class Columns:
    """What rows are of."""

    prefixes: Sequence[int]
    """`TokenizerMeasure.prefixes`: the columns of mse, psnr and ssim."""
    layout: TokenLayout | None
    """Of the tokens; None of a tokenizer without."""
    folds: Sequence[str]
    """Names of the branches."""
    perceptual: Mapping[str, Record] = field(default_factory=dict)
    """What the network of each perceptual distance is, as JSON, by the name of its row."""


def tokenizer_numbers(rows: MeasuredRows, columns: Columns, measured_by: Record, measured_of: Record) -> list[Number]:
    """Errors at each prefix, perceptual distances of full reconstructions, and how codes are used.

    Args:
        rows: of a `TokenizerMeasure`.
        columns: what they are.
        measured_by: images and crop, as numbers.py, and no rounding, as errors are of values that are not rounded; the
            protocol and perceptual networks are added.
        measured_of: the tokenizer, as numbers.py; `keep` is added.

    Raises:
        ValueError: if there are no images, or a value is not finite.
    """
    means = {name: RowMeans() for name in (*QUALITIES, *columns.perceptual)}
    counts = None if columns.layout is None else CodeCounts(columns.layout)
    for part in rows.parts(*means, *(["tokens"] if counts else [])):
        for name, each in means.items():
            each.update(part[name] if part[name].ndim == 2 else part[name][:, None])
        if counts is not None:
            counts.update(part["tokens"])
    if not means[QUALITIES[0]].count:
        raise ValueError("a tokenizer is measured on no images: give at least one")
    numbers = [*_errors(means, columns, measured_by, measured_of)]
    if counts is not None:
        numbers += _codes(counts, columns, rows.count, measured_by, measured_of)
    return numbers


def _errors(means: dict[str, RowMeans], columns: Columns, by: Record, of: Record) -> Iterator[Number]:
    for name, each in means.items():
        prefixes = columns.prefixes if name in QUALITIES else columns.prefixes[-1:]
        network = {"network": columns.perceptual[name]} if name in columns.perceptual else {}
        errors_K = each.standard_errors
        for place, keep in enumerate(prefixes):
            yield Number(
                metric=name,
                value=float(each.means[place]),
                images=each.count,
                measured_by=with_protocol(by | network, {"standard_error": "over images"}),
                measured_of=of | {"keep": keep},
                plus_minus=None if errors_K is None else float(errors_K[place]),
            )


def _codes(counts: CodeCounts, columns: Columns, images: int, by: Record, of: Record) -> Iterator[Number]:
    for fold, hits_GV in zip(columns.folds, counts.hits, strict=True):
        found = code_use(hits_GV)
        for scale, (use, perplexity) in enumerate(zip(found.use, found.perplexity, strict=True), 1):
            place = {"branch": fold, "scale": scale}
            used = with_protocol(by, place | {"least_share_of_mean_hits": THRESHOLD})
            yield Number("code_use", use, images, used, dict(of))
            yield Number("code_perplexity", perplexity, images, with_protocol(by, place), dict(of))
        yield Number("dead_codes", found.dead, images, with_protocol(by, {"branch": fold}), dict(of))


def with_protocol(measured_by: Record, protocol: Record) -> Record:
    """How a number is measured, with more of its protocol."""
    return measured_by | {"protocol": protocol | measured_by.get("protocol", {})}
