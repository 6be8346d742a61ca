"""Where an image's tokens stand in a sequence: groups, positions and folds. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

SMALL_IDS = 2**16
"""Codes up to which a token fits into 16 bits."""
MOST_IDS = 2**32
"""Codes of a vocabulary at most."""


@dataclass(frozen=True)
class TokenLayout:
    """The shape of an image's tokens: positions in groups, and at each position a token of every fold.

    Groups say what belongs together (a scale, all latents); in which order they are predicted is a generator's own
    affair. ImageFolder's has a group per scale and a fold per branch; TiTok's one group of 32 and one fold.

    Args:
        groups: positions of each group, in the order in which they are stored.
        vocabularies: codes of each fold.
        interleaved: folds whose tokens stand one after the other as positions of one fold (`unfolded`); 1 as stored.

    Raises:
        ValueError: if there is no group or no fold, or one of them is empty.
    """

    groups: tuple[int, ...]
    vocabularies: tuple[int, ...]
    interleaved: int = 1

    def __post_init__(self) -> None:
        if not self.groups or min(self.groups) < 1:
            raise ValueError(f"groups {list(self.groups)}: give at least one, each of 1 position or more")
        if not self.vocabularies or min(self.vocabularies) < 1 or max(self.vocabularies) > MOST_IDS:
            raise ValueError(f"vocabularies {list(self.vocabularies)}: give at least one, each of 1 to 2^32 codes")

    @property
    def offsets(self) -> tuple[int, ...]:
        """First position of each group, and the number of positions at the end."""
        return (0, *accumulate(self.groups))

    @property
    def positions(self) -> int:
        """Length of the sequence (286 for ImageFolder's ten scales)."""
        return self.offsets[-1]

    @property
    def folds(self) -> int:
        """Tokens per position."""
        return len(self.vocabularies)

    @property
    def dtype(self) -> Literal["uint16", "uint32"]:
        """What holds every token of every fold."""
        return "uint16" if max(self.vocabularies) <= SMALL_IDS else "uint32"

    def span(self, group: int) -> slice:
        """The positions of one group."""
        return slice(self.offsets[group], self.offsets[group + 1])

    def vocabulary(self) -> int:
        """The number of codes that all folds have.

        Raises:
            ValueError: if they differ.
        """
        if len(set(self.vocabularies)) > 1:
            raise ValueError(f"the folds have different vocabularies: {list(self.vocabularies)}")
        return self.vocabularies[0]

    def unfolded(self) -> TokenLayout:
        """The same tokens as positions of one fold: those of a position one after the other, in the order of the folds.

        Raises:
            ValueError: if the folds have different vocabularies.
        """
        return TokenLayout(tuple(size * self.folds for size in self.groups), (self.vocabulary(),), self.folds)

    def folded(self) -> TokenLayout:
        """What `unfolded` was made of; itself, if it was not."""
        if self.interleaved == 1:
            return self
        return TokenLayout(
            tuple(size // self.interleaved for size in self.groups), self.vocabularies * self.interleaved
        )

    def __str__(self) -> str:
        codes = " and ".join(f"{size:,}" for size in dict.fromkeys(self.vocabularies))
        return f"{self.positions} positions in {len(self.groups)} groups, {self.folds} tokens each, of {codes} codes"

    def to_json(self) -> dict[str, object]:
        """As it stands in manifests and cards, where no layout is unfolded."""
        assert self.interleaved == 1
        return {"groups": list(self.groups), "vocabularies": list(self.vocabularies)}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> TokenLayout:
        """Back from a manifest or a card.

        Raises:
            ValueError: if it is no layout.
        """
        if set(record) != {"groups", "vocabularies"}:
            raise ValueError(f"a layout has groups and vocabularies, and this has {sorted(record)}")
        return cls(_numbers("groups", record["groups"]), _numbers("vocabularies", record["vocabularies"]))


def _numbers(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(type(item) is int for item in value):
        raise ValueError(f"{name} of a layout is a list of whole numbers")
    return tuple(value)
