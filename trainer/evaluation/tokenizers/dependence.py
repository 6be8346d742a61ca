"""What tokens look like as a data set: codes used at each position, and how much one fold tells of another.

The papers call the branches independent; the mutual information of two folds' codes at a position says how far. Its
plug-in estimate from N pairs is far too high where there are many codes (4096 × 4096 cells), so beside it stands the
same estimate of codes whose images were shuffled within each position: what is left of it where nothing depends but
on the position. The difference of the two is the estimate that counts; it errs low rather than high.

Shapes: N images, L positions, F folds, G groups, K positions of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.layout import TokenLayout

MOST_IMAGES = 10_000
"""Whose tokens are looked at."""
MOST_PAIRS = 2_000_000
"""Pairs of codes of a group that mutual information is estimated from: of more, the first images'."""

Tokens = npt.NDArray[np.integer]


@dataclass(frozen=True)
class MutualInformation:
    """Of two folds, in bits, for each group."""

    folds: tuple[int, int]
    plain: tuple[float, ...]
    """The plug-in estimate."""
    shuffled: tuple[float, ...]
    """The same of shuffled images: its bias."""
    entropy: tuple[float, ...]
    """Plug-in entropy of the fold that has less of it: no more than so much could be shared."""


def perplexity_by_position(tokens_NLF: Tokens) -> list[list[float]]:
    """Of each fold, exp of the entropy of its codes at each position [F][L]."""
    return [
        [float(np.exp2(_entropy(tokens_NLF[:, position, fold]))) for position in range(tokens_NLF.shape[1])]
        for fold in range(tokens_NLF.shape[2])
    ]


def mutual_information(tokens_NLF: Tokens, layout: TokenLayout, seed: int = 0) -> list[MutualInformation]:
    """Of each pair of folds; which images are shuffled against which follows from the seed."""
    folds = layout.folds
    return [_of_pair(tokens_NLF, layout, (one, other), seed) for one in range(folds) for other in range(one + 1, folds)]


def _of_pair(tokens_NLF: Tokens, layout: TokenLayout, folds: tuple[int, int], seed: int) -> MutualInformation:
    plain, shuffled, entropy = [], [], []
    for group, positions in enumerate(layout.groups):
        images = max(1, min(len(tokens_NLF), MOST_PAIRS // positions))
        first_NK, second_NK = (tokens_NLF[:images, layout.span(group), fold] for fold in folds)
        random = np.random.default_rng([seed, group, *folds])
        mixed_NK = random.permuted(second_NK, axis=0)  # each position by itself
        plain.append(information(first_NK.ravel(), second_NK.ravel()))
        shuffled.append(information(first_NK.ravel(), mixed_NK.ravel()))
        entropy.append(min(_entropy(first_NK.ravel()), _entropy(second_NK.ravel())))
    return MutualInformation(folds, tuple(plain), tuple(shuffled), tuple(entropy))


def information(first_N: Tokens, second_N: Tokens) -> float:
    """Plug-in estimate of the mutual information of two columns of codes, in bits."""
    pairs_N = first_N.astype(np.int64) * (int(second_N.max(initial=0)) + 1) + second_N
    return _entropy(first_N) + _entropy(second_N) - _entropy(pairs_N)


def _entropy(codes_N: Sequence[int] | Tokens) -> float:
    """Of the codes' frequencies, in bits."""
    counts = np.unique(codes_N, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())
