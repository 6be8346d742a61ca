"""Named scalars of a step, kept as one vector on the device: one kernel adds them all, one copy brings them home."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Terms = dict[str, Tensor]
"""What a stage computes of a micro-batch: scalars by name, one of them usually "loss"."""


@dataclass(frozen=True, eq=False)
class Scalars(Mapping[str, Tensor]):
    """Scalars by name, float32, without gradients."""

    names: tuple[str, ...]
    values_N: Tensor

    @classmethod
    def of(cls, terms: Terms, share: int = 1) -> Scalars:
        """Detached, each divided by `share`: the micro-batches whose mean is wanted."""
        values_N = torch.stack([value.detach().float() for value in terms.values()])
        return cls(tuple(terms), values_N / share if share > 1 else values_N)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.values_N[self.names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Scalars) -> Scalars:
        """The sums, of the same names."""
        assert self.names == other.names, (self.names, other.names)
        return Scalars(self.names, self.values_N + other.values_N)

    def __or__(self, other: Scalars) -> Scalars:
        """Those of both, of different names."""
        assert not set(self.names) & set(other.names), (self.names, other.names)
        return Scalars(self.names + other.names, torch.cat([self.values_N, other.values_N]))
