"""What a family of generators brings to `generator.py`: the published network and ours, with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.layers.linear import PackedWeights
from model.protocols import SamplingPlan, TeacherForcing

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


def our_loss(
    network: Any, label_B: Tensor, tokens_BL: Tensor, forcing: TeacherForcing | None = None
) -> Callable[[], Tensor]:
    """Of one of our generators, on tokens of one fold, with products in bf16."""
    seed_B = torch.arange(len(label_B))

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            terms: dict[str, Tensor] = network.training_terms(tokens_BL[..., None], label_B, seed_B, forcing)
        return terms["loss"]

    return loss


def our_draws(network: nn.Module, plan: SamplingPlan) -> dict[str, Draw]:
    """Of one of our generators, with weights in either precision, packed as `Sampler` has them."""
    packed = PackedWeights()

    def draw(made: Any) -> object:
        with packed.used():
            return made.sample(plan)

    return {
        name: in_precision(network, dtype, draw) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }


def in_precision(network: nn.Module, dtype: torch.dtype, draw: Callable[[Any], object]) -> Draw:
    """A draw by a copy in that precision, which is made for the first one; in float32 by the network itself."""
    made: list[nn.Module] = []

    def run() -> object:
        if not made:
            made.append(network if dtype == torch.float32 else copy.deepcopy(network).to(dtype))
        return draw(made[0].eval())

    return run
