"""Latent perturbation (RobustTok): a decoder sees near codes for some true ones, so that it forgives a generator.

Shapes: B batch, K tokens, V codes, C channels of a code, N neighbours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PerturbationConfig
from model.layers.precision import without_autocast
from model.layers.random_numbers import uniform

_PRODUCTS_AT_ONCE = 2**26


class Perturbation(NamedTuple):
    """How strong it is at a point of the run."""

    tokens: float
    """Share of a chosen image's tokens that are replaced."""
    neighbours: int
    """Nearest codes from which the other is drawn, itself among them."""


def perturbation_at(progress: float, config: PerturbationConfig) -> Perturbation:
    """The annealed strength, given the share of the run that is done.

    As published (alpha 1, delta 100, half of both from epoch 120 of 200): epoch 40: 1 and 100; 80: 0.75 and 75; from
    120 on: 0.5 and 50.
    """
    length = config.anneal_to - config.anneal_from
    if length > 0:
        done = min(max((progress - config.anneal_from) / length, 0.0), 1.0)
    else:
        done = float(progress >= config.anneal_to)
    ratio = 1 - done * (1 - config.final)
    # What is meant to be whole is: 0.29 * 100 is 28.999...
    return Perturbation(ratio * config.tokens, max(math.floor(ratio * config.neighbours + 1e-9), 1))


def chances_of(strength: Perturbation, most: int) -> npt.NDArray[np.float32]:
    """The chance that a token becomes one of its n nearest codes, for n from 1 to `most`; so the last is the share.

    A table of one length for the whole run, so that how strong it is changes no shape.
    """
    ranks = np.minimum(np.arange(1, most + 1), strength.neighbours)
    return (strength.tokens * (ranks / strength.neighbours)).astype(np.float32)


def perturbed_tokens(
    tokens_BK: Tensor, codebook_VC: Tensor, seed_B: Tensor, chosen_B: Tensor, chance_N: Tensor
) -> Tensor:
    """Ids of which some are those of near codes, int64 [B, K], to be decoded. The quantizer's losses see the true ones.

    Args:
        tokens_BK: the true ids.
        codebook_VC: all codes; which are near says their cosine.
        seed_B: a number per image.
        chosen_B: images that are perturbed at all, bool.
        chance_N: from `chances_of`; no longer than there are codes.
    """
    number_BK = uniform(seed_B, tokens_BK.shape[1]).t().contiguous()
    rank_BK = torch.searchsorted(chance_N, number_BK, right=True)
    near_VN = nearest_codes(codebook_VC, len(chance_N))
    other_BK = near_VN[tokens_BK, rank_BK.clamp(max=len(chance_N) - 1)]
    return torch.where(chosen_B[:, None] & (rank_BK < len(chance_N)), other_BK, tokens_BK)


@torch.no_grad()
def nearest_codes(codebook_VC: Tensor, count: int, *, cosine: bool = True) -> Tensor:
    """Ids of the codes nearest to each, nearest first, itself always the first, int64 [V, N].

    Args:
        codebook_VC: all codes.
        count: how many, itself among them.
        cosine: by the angle between codes, or else by their distance.
    """
    with without_autocast(codebook_VC.device):
        codes_VC = codebook_VC.detach().float()
        codes_VC = F.normalize(codes_VC, dim=1) if cosine else codes_VC
        half_square_V = codes_VC.square().sum(1) / 2
        own_V = torch.arange(len(codes_VC), device=codes_VC.device)
        rows = max(_PRODUCTS_AT_ONCE // len(codes_VC), 1)
        found = []
        for start in range(0, len(codes_VC), rows):
            part = slice(start, start + rows)
            nearness_RV = codes_VC[part] @ codes_VC.t()
            if not cosine:
                nearness_RV -= half_square_V
            # Another code at the same place is no nearer than the code itself.
            nearness_RV.scatter_(1, own_V[part, None], math.inf)
            found.append(nearness_RV.topk(count, dim=1).indices)
        return torch.cat(found)
