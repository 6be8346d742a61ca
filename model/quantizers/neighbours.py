"""Which codes are near to one another, for each kind of quantizer: what a perturbed token becomes.

    by_distance   codes of a codebook: by cosine or distance, as the quantizer looks codes up
    by_bits       codes of signs: by the number of bits that differ, which orders their distances, too
    by_steps      codes of levels: by the sum over channels of the levels between

Codes at the same distance have a fixed order, so that a rank names one code.

Shapes: N tokens, V codes, C channels (bits) of a code, M offsets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from model.losses.perturbation import nearest_codes
from model.protocols import Near
from model.quantizers.binary import BinaryQuantizer
from model.quantizers.fsq import FiniteScalarQuantizer
from model.quantizers.vector import VectorQuantizer

_CHECKS_AT_ONCE = 2**24


def by_distance(quantizer: VectorQuantizer, count: int) -> Near:
    """The nearest codes of a codebook, from a table of V x count ids."""
    config = quantizer.config
    cosine = config.lookup == "cosine" or config.unit_codes
    near_VN = nearest_codes(quantizer.codebook, count, cosine=cosine)
    return lambda token_N, rank_N: near_VN[token_N, rank_N]


def by_bits(quantizer: BinaryQuantizer, count: int) -> Near:
    """Ids with the fewest bits turned; of equally many, the lowest bits first."""
    bits = quantizer.config.bits
    turned = itertools.chain.from_iterable(itertools.combinations(range(bits), number) for number in range(bits + 1))
    mask_N = torch.tensor([sum(1 << bit for bit in each) for each in itertools.islice(turned, count)])

    def near(token_N: Tensor, rank_N: Tensor) -> Tensor:
        return token_N ^ mask_N.to(token_N.device)[rank_N]

    return near


def by_steps(quantizer: FiniteScalarQuantizer, count: int) -> Near:
    """Ids with the fewest steps of levels between, over all channels."""
    levels = quantizer.config.levels
    offset_MC = torch.tensor(_offsets(levels, count))
    base_C = torch.tensor(list(itertools.accumulate(levels[:-1], lambda base, each: base * each, initial=1)))
    levels_C = torch.tensor(levels)
    rows = max(1, _CHECKS_AT_ONCE // offset_MC.numel())

    def near(token_N: Tensor, rank_N: Tensor) -> Tensor:
        parts = zip(torch.split(token_N.cpu(), rows), torch.split(rank_N.cpu(), rows), strict=True)
        return torch.cat([part(*each) for each in parts]).to(token_N.device)

    def part(token_N: Tensor, rank_N: Tensor) -> Tensor:
        other_NMC = (token_N[:, None] // base_C % levels_C)[:, None] + offset_MC
        is_code_NM = ((other_NMC >= 0) & (other_NMC < levels_C)).all(2)
        wanted_NM = is_code_NM & (is_code_NM.cumsum(1) == rank_N[:, None] + 1)
        return token_N + (offset_MC * base_C).sum(1)[wanted_NM.int().argmax(1)]

    return near


def _offsets(levels: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Steps in each channel, the shortest first: so many that any code has `count` codes at one of them.

    A code in a corner has the fewest within any number of steps; the steps that it can go are all upwards.
    """
    for radius in range(sum(levels)):
        found = list(_within(levels, radius))
        if sum(min(each) >= 0 for each in found) >= count:
            break
    return sorted(found, key=lambda each: (sum(map(abs, each)), each))


def _within(levels: Sequence[int], radius: int) -> Iterator[tuple[int, ...]]:
    """All steps of at most so many levels in sum."""
    if not levels:
        yield ()
        return
    most = min(radius, levels[0] - 1)
    for step in range(-most, most + 1):
        for others in _within(levels[1:], radius - abs(step)):
            yield (step, *others)
