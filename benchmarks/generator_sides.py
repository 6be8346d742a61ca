"""What a family of generators brings to `generator.py`: the published network and ours, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

Draw = Callable[[], object]


@dataclass(frozen=True)
class Side:
    """One of the two."""

    network: nn.Module
    """Whose parameters are trained; `loss` and `draws` put it into the mode that they need."""
    loss: Callable[[], Tensor]
    """Loss of one batch in training mode, products in bf16 as the side's own training has them."""
    draws: dict[str, Draw] = field(default_factory=dict)
    """One batch of tokens with guidance, no decoder, by precision: "fp32" and "bf16", as the side's own sampling has
    them."""


@dataclass(frozen=True)
class Pair:
    """Both, and what they were made of."""

    theirs: Side
    ours: Side
    difference: Callable[[], float]
    """Largest difference of their outputs in float32 and eval mode, as a share of the largest: the proof that it is the
    same network."""
    sizes: dict[str, object]
    """Of the networks and batches, for the record."""
    naive: dict[str, Draw] = field(default_factory=dict)
    """The same draws as people write them at first: a dense mask, a cache that is concatenated, two passes."""


@dataclass(frozen=True)
class Options:
    """What is asked of a family."""

    checkout: Path
    """Of the published code."""
    size: str
    """Of the network, as the family names it; empty for its default."""
    batch: int
    """Samples of a training step, and images of a draw."""
