"""What is random in a training pass, as a function of each sample's seed alone.

    seed_B                          one random number per sample, from whoever makes the batch
    uniform(seed_B, count)          numbers of [0, 1): the n-th of a sample is SplitMix64's n-th output from its seed

No generator of torch's is drawn from. So a sample is treated alike in whatever batch, micro-batch or process it is, on
a CPU and on a GPU (there is nothing but integer arithmetic), and when a block is computed a second time in backward.

Shape suffixes: B batch, L positions, C channels, N numbers per sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _signed(number: int) -> int:
    """The int64 with the bits of a uint64, as torch has no arithmetic on those."""
    return (number + 2**63) % 2**64 - 2**63


# Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014)
_GAMMA, _FIRST, _SECOND = (_signed(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_FLOAT_BITS = 24


def _shift(bits: Tensor, by: int) -> Tensor:
    """A shift to the right that brings in zeros: that of an int64 brings in its sign."""
    shifted: Tensor = (bits >> by) & (2 ** (64 - by) - 1)
    return shifted


def split_seed(seed_B: Tensor, count: int) -> Tensor:
    """Seeds for `count` independent purposes.

    Args:
        seed_B: int64, any bits.
        count: how many. The first of more are the same as of fewer.

    Returns:
        int64 [N, B].
    """
    number_N = torch.arange(1, count + 1, device=seed_B.device)
    return _scrambled(seed_B + (number_N * _GAMMA)[:, None])


def uniform(seed_B: Tensor, count: int) -> Tensor:
    """Independent numbers of [0, 1), float32 [N, B], multiples of 2^-24 (see `split_seed`)."""
    return _shift(split_seed(seed_B, count), 64 - _FLOAT_BITS).float() * 2.0**-_FLOAT_BITS


def block_chances(seed_B: Tensor | None, blocks: int) -> list[Tensor | None]:
    """What decides for each block of a transformer which samples miss its two branches.

    Returns:
        For each block [2, B] from `uniform`; None without a seed.
    """
    if seed_B is None:
        return [None] * blocks
    return list(uniform(seed_B, 2 * blocks).view(blocks, 2, -1).unbind())


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Rates of stochastic depth: 0 for the first block, growing in even steps to that of the last."""
    return [last * block / max(blocks - 1, 1) for block in range(blocks)]


def drop_path(x_BLC: Tensor, chance_B: Tensor | None, rate: float) -> Tensor:
    """Stochastic depth (arXiv 1603.09382): a sample misses this branch by chance, and has it scaled up otherwise.

    Args:
        x_BLC: what the branch adds.
        chance_B: of [0, 1); a sample whose number is below the rate misses the branch.
        rate: share of the samples that miss it.

    Raises:
        ValueError: if there is no chance to decide by.
    """
    if chance_B is None:
        raise ValueError("stochastic depth in training needs seed_B, one random number per sample (or call eval())")
    factor_B = (chance_B >= rate).to(x_BLC.dtype) / (1 - rate)
    return x_BLC * factor_B[:, None, None]


def dropout(x_BC: Tensor, seed_B: Tensor | None, rate: float) -> Tensor:
    """Dropout of single elements, which are scaled up otherwise.

    Raises:
        ValueError: if there is no seed to decide by.
    """
    if seed_B is None:
        raise ValueError("dropout in training needs seed_B, one random number per sample (or call eval())")
    chance_BC = uniform(seed_B, x_BC.shape[1]).T
    return x_BC * ((chance_BC >= rate).to(x_BC.dtype) / (1 - rate))


def normal(seed_B: Tensor, count: int) -> Tensor:
    """Independent numbers of N(0, 1), float32 [N, B], by the transform of Box and Muller; at most 5.8 (see `uniform`).

    The first of more are the same as of fewer.
    """
    radius_NB, angle_NB = uniform(seed_B, 2 * count).view(count, 2, -1).unbind(1)
    return (-2 * torch.log1p(-radius_NB)).sqrt() * torch.cos(2 * math.pi * angle_NB)


def numbered_bits(seed: Tensor, number: Tensor) -> Tensor:
    """The outputs of seeds by their numbers from 0, int64, of what both broadcast to."""
    return _scrambled(seed + (number + 1) * _GAMMA)


def _scrambled(bits: Tensor) -> Tensor:
    """SplitMix64's last steps, in place."""
    for by, factor in ((30, _FIRST), (27, _SECOND)):
        bits ^= _shift(bits, by)
        bits *= factor
    return bits.bitwise_xor_(_shift(bits, 31))
