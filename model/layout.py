"""Where tokens stand in a sequence: scales and branches to positions, groups and folds. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class TokenLayout:
    """The shape of an image's tokens: `positions` places, each holding one token of every branch (a fold).

    Positions run scale by scale, coarse to fine, row by row within a scale. The positions of one scale form a group:
    they are predicted together and see all groups up to their own.

    Raises:
        ValueError: if there is no scale, or a scale is larger than the last one, which is the latent grid.
    """

    scales: tuple[int, ...]
    branches: int
    codebook_size: int

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales {list(self.scales)}: give at least one, each 1 or larger")
        if max(self.scales) != self.scales[-1]:
            raise ValueError(f"scales {list(self.scales)}: the last is the latent grid, so none may be larger")

    @property
    def grid(self) -> int:
        """Side of the latent grid."""
        return self.scales[-1]

    @cached_property
    def group_sizes(self) -> tuple[int, ...]:
        """Positions of each scale."""
        return tuple(side * side for side in self.scales)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First position of each scale, and the number of positions at the end."""
        offsets = [0]
        for size in self.group_sizes:
            offsets.append(offsets[-1] + size)
        return tuple(offsets)

    @property
    def positions(self) -> int:
        """Length of the generator's sequence (286 for ImageFolder's ten scales)."""
        return self.offsets[-1]

    @property
    def folds(self) -> int:
        """Tokens per position."""
        return self.branches

    def span(self, scale: int) -> slice:
        """The positions of one scale."""
        return slice(self.offsets[scale], self.offsets[scale + 1])

    def to_json(self) -> dict[str, object]:
        """As it stands in manifests."""
        return {"scales": list(self.scales), "branches": self.branches, "codebook_size": self.codebook_size}

    @classmethod
    def from_json(cls, record: dict[str, object]) -> TokenLayout:
        """Back from a manifest."""
        scales, branches, size = record["scales"], record["branches"], record["codebook_size"]
        assert isinstance(scales, list)
        assert isinstance(branches, int)
        assert isinstance(size, int)
        return cls(tuple(scales), branches, size)
