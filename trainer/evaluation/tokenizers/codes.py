"""Which codes a tokenizer uses, from how often each was chosen.

The published code calls a code used if it has .08 of the mean hits of the *finest* scale, at every scale; a coarse
scale, of few positions, can then never show high use. Here the threshold follows each scale's own mean.

Shapes: F folds (branches), G groups (scales), V codes of a fold, B images, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.layout import TokenLayout

THRESHOLD = 0.08
"""Share of its scale's mean hits that a code needs to count as used, beside a hit at all."""

Hits = Sequence[npt.NDArray[np.int64]]
"""Of each fold, how often each code was chosen in each group [G, V]."""


@dataclass(frozen=True)
class CodeUse:
    """How a fold's codes are used."""

    use: tuple[float, ...]
    """Of each group: codes that are used, as a share of the codebook."""
    attainable: tuple[float, ...]
    """Of each group: the largest share that so few tokens could use."""
    perplexity: tuple[float, ...]
    """Of each group: exp of the entropy of its codes; as many codes, used equally, would be as uncertain."""
    dead: float
    """Codes that no group uses, as a share of the codebook."""


def count_codes(tokens_BLF: Tensor, layout: TokenLayout) -> list[Tensor]:
    """How often each code was chosen, int64 [G, V] for each fold."""
    found = []
    for fold, codes in enumerate(layout.vocabularies):
        groups = [tokens_BLF[:, layout.span(group), fold].flatten() for group in range(len(layout.groups))]
        found.append(torch.stack([torch.bincount(tokens, minlength=codes) for tokens in groups]))
    return found


def code_use(hits_GV: npt.NDArray[np.int64]) -> CodeUse:
    """How a fold's codes are used, from how often each was chosen."""
    codes, seen_G = hits_GV.shape[1], hits_GV.sum(axis=1)
    used_GV = (hits_GV > 0) & (hits_GV >= THRESHOLD * seen_G[:, None] / codes)
    share_GV = hits_GV / np.maximum(seen_G, 1)[:, None]
    entropy_G = -(share_GV * np.log(np.where(share_GV > 0, share_GV, 1))).sum(axis=1)
    return CodeUse(
        use=tuple((used_GV.sum(axis=1) / codes).tolist()),
        attainable=tuple((np.minimum(seen_G, codes) / codes).tolist()),
        perplexity=tuple(np.exp(entropy_G).tolist()),
        dead=float((hits_GV.sum(axis=0) == 0).mean()),
    )
