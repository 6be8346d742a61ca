"""What can be set of heads: how the tokens of one position, a token of each fold, are predicted together.

Which there are is said here once; model/generators/heads.py makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from model.config.registered import choice_of, kind_of
from model.config.section import Section


class HeadConfig(Section):
    """What the configs of all heads have."""

    kind: str
    """Kind of the head."""


class IndependentHeadConfig(HeadConfig):
    """Folds are independent given the position, as published (ImageFolder, arXiv 2410.01756): one linear layer."""

    kind: Literal["independent"] = "independent"
    """Kind of the head."""


class DepthHeadConfig(HeadConfig):
    """Each fold is predicted from the position and the folds before it (RQ-Transformer, arXiv 2203.01941).

    A small transformer over the folds of a position: their joint likelihood is the product of what it says.
    """

    kind: Literal["depth"] = "depth"
    """Kind of the head."""
    depth: int = Field(4, gt=0, le=100)
    """Number of blocks."""
    width: int = Field(512, gt=0, le=65_536)
    """Channels of each fold's place."""
    heads: int = Field(8, gt=0, le=1_024)
    """Attention heads."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


@dataclass(frozen=True)
class HeadFamily:
    """Heads of one kind."""

    config: type[HeadConfig]
    """What can be set of them. The default of its `kind` is the family's name."""
    network: str
    """"module:class" of the `FoldHead`, made from a config, the width of what it reads, a layout, and whether logits
    have a bias."""


_OWN = (
    HeadFamily(IndependentHeadConfig, network="model.generators.heads:IndependentHead"),
    HeadFamily(DepthHeadConfig, network="model.generators.heads:DepthHead"),
)
"""The first is what a config without a kind means."""


def head_families() -> dict[str, HeadFamily]:
    """Heads by kind."""
    return {kind_of(family): family for family in _OWN}


if TYPE_CHECKING:
    AnyHeadConfig = HeadConfig
else:
    AnyHeadConfig = choice_of(family.config for family in head_families().values())
