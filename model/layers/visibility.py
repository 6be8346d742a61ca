"""Which positions see which: groups that see themselves and all groups before them, as masks where a kernel wants one.

Masks are made once per process and device, and are constants to the compiler. Shape suffix: L positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_ALIGNMENT = 16
"""The memory-efficient kernel wants rows of a bias that start at multiples of 8 elements; 16 serves all."""


@dataclass(frozen=True)
class GroupCausal:
    """Who sees whom: the positions of a group see all positions of the groups up to their own.

    Raises:
        ValueError: if there is no group, or an empty one.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"group sizes {list(self.sizes)}: give at least one, each 1 or larger")

    @classmethod
    def next_token(cls, positions: int) -> GroupCausal:
        """Groups of one: ordinary causal attention."""
        return cls((1,) * positions)

    @classmethod
    def everything(cls, positions: int) -> GroupCausal:
        """One group: every position sees every other."""
        return cls((positions,))

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First position of each group, and the first position after it."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return tuple((end - size, end) for size, end in zip(self.sizes, ends, strict=True))

    @property
    def positions(self) -> int:
        """Length of the sequence."""
        return sum(self.sizes)

    @property
    def is_full(self) -> bool:
        """Whether nothing is hidden."""
        return len(self.sizes) == 1

    @property
    def is_causal(self) -> bool:
        """Whether each position is a group of its own."""
        return max(self.sizes) == 1

    def mask(self, device: torch.device) -> Tensor:
        """Boolean `[L, L]`, true where a query (row) sees a key (column). Cached: do not write into it."""
        mask_LL: Tensor = _constant_mask(self.sizes, device)
        return mask_LL

    def bias(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """`[L, L]` to add to logits, 0 or -inf, with rows as the memory-efficient kernel wants them. Cached."""
        bias_LL: Tensor = _constant_bias(self.sizes, device, dtype)
        return bias_LL


def group_of_position(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The group of each position, int64 `[L]`. Cached: do not write into it."""
    groups_L: Tensor = _constant_groups(sizes, device)
    return groups_L


# What is cached takes part in training later, so it must not be born in inference mode.


@lru_cache(maxsize=32)
def _groups(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([group for group, size in enumerate(sizes) for _ in range(size)], device=device)


@lru_cache(maxsize=32)
def _mask(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        groups_L = _groups(sizes, device)
        return groups_L[:, None] >= groups_L[None, :]


@lru_cache(maxsize=32)
def _bias(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        mask_LL = _mask(sizes, device)
        length = len(mask_LL)
        padded = torch.zeros(length, -(-length // _ALIGNMENT) * _ALIGNMENT, device=device, dtype=dtype)
        return padded[:, :length].masked_fill_(~mask_LL, float("-inf"))


# A cache's wrapper is none of the compiler's business: it would trace what is inside, anew for each block.


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_groups(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return _groups(sizes, device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_mask(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return _mask(sizes, device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_bias(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return _bias(sizes, device, dtype)


def forget_masks() -> None:
    """Empty the caches: tensors that were made under a tracer's mode are of no use outside of it."""
    for cache in (_groups, _mask, _bias):
        cache.cache_clear()
