"""What can be set of generators that learn random orders of the positions (RAR, arXiv 2411.00776)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.config.generators import GeneratorConfig
from model.config.sampling import GuidanceSchedule, OrderOptions
from model.config.section import ShareOfSteps, StepOrShare, known_step
from model.layout import TokenLayout

Scan = Literal["row-major", "z-curve", "subsample", "spiral-in", "spiral-out", "alternate"]


class RandomOrderOptions(OrderOptions):
    """What can be set of sampling in this order alone."""

    positions: Literal["scan", "random"] = "scan"
    """In which order the positions of an image are drawn: the one that training ended with, or one of its own, which
    follows from the image's seed, for a network that has learned random orders to the end."""


class RandomOrderConfig(GeneratorConfig):
    """One position after another, in an order of each sample's own that anneals to a fixed one.

    A causal transformer that is told where the next token belongs; each position's block is modulated by the class and
    the number of the step.
    """

    guidance_schedule: ClassVar[GuidanceSchedule] = GuidanceSchedule(kind="cosine", power=2.75)
    draws_one_by_one: ClassVar[bool] = True
    order_options: ClassVar[type[OrderOptions]] = RandomOrderOptions

    kind: Literal["random"] = "random"
    """Family of the generator."""
    depth: int = Field(24, gt=0, le=1_000)
    """Number of blocks."""
    width: int = Field(768, gt=0, le=65_536)
    """Channels of each position."""
    heads: int = Field(16, gt=0, le=1_024)
    """Attention heads."""
    mlp_width: int | None = Field(None, gt=0, le=1_000_000)
    """Hidden width of the MLP; null for four times `width`."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of what attention and MLP give, element by element, in training."""
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    """Of the attention between two positions, in training. Above 0 no fused kernel of attention is used."""
    random_until: StepOrShare = ShareOfSteps(share=0.5)
    """Step up to which each sample has a random order, or a share of the training, `{share: 0.5}`: published as 125,000
    of 250,000."""
    scan_from: StepOrShare = ShareOfSteps(share=0.75)
    """Step from which all samples have the order of `scan`, or a share of the training; from `random_until` on, the
    share of random orders falls linearly. Beyond the last step, orders stay random."""
    scan: Scan = "row-major"
    """The order that training ends with, and that samples are drawn in. row-major is that of the token shards, for any
    layout; the others are for tokens of a square grid: z-curve (Morton's), subsample (every second row and column
    first, again and again), spiral-in (clockwise from the first corner), spiral-out (the same backwards), alternate
    (every second row backwards)."""
    spare_positions: int = Field(0, ge=0, le=1_000_000)
    """Rows of both tables of positions that nothing reads; the published networks have 1022."""
    spare_steps: int = Field(0, ge=0, le=1_000_000)
    """Rows of the table of steps that nothing reads; the published networks have 98."""

    @property
    def needs_step(self) -> bool:
        """The share of random orders is a matter of the step."""
        return True

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return self.mlp_width or 4 * self.width

    def random_share(self, step: int) -> float:
        """Share of the samples of a step (from 0) that have a random order."""
        first, last = known_step(self.random_until), known_step(self.scan_from)
        if step >= last:
            return 0.0
        return 1.0 if step < first else (last - step) / (last - first)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        first, last = _comparable(self.random_until), _comparable(self.scan_from)
        if isinstance(self.random_until, int) == isinstance(self.scan_from, int) and first > last:
            raise ValueError(f"random_until {first:g} comes after scan_from {last:g}: orders are random first")
        return self

    def check_layout(self, layout: TokenLayout, forcing_width: int | None) -> None:  # noqa: ARG002 - any will do
        """Takes any layout; scans but row-major need one group that is a square.

        Raises:
            ValueError: says what is missing.
        """
        side = math.isqrt(layout.positions)
        is_square = len(layout.groups) == 1 and layout.interleaved == 1 and side**2 == layout.positions
        if self.scan != "row-major" and not is_square:
            raise ValueError(
                f"scan {self.scan} goes over the rows and columns of a square grid, and these tokens are {layout}: "
                "take scan row-major, which is the order in which they are stored"
            )


def _comparable(step: int | ShareOfSteps) -> float:
    return step.share if isinstance(step, ShareOfSteps) else step
