"""Families as another package would add them: a 1-D tokenizer without a grid, and a generator of another order.

The folder of this file is installed as far as Python can tell (foldtrain_toy-1.0.dist-info): who puts it on PYTHONPATH
has both kinds.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model.config import GeneratorConfig, TokenizerConfig
from model.families import GeneratorFamily, TokenizerFamily
from model.layout import TokenLayout


class ToyTokenizerConfig(TokenizerConfig):
    """A few latents in a row, each quantized by several codebooks of different sizes."""

    kind: Literal["toy-1d"] = "toy-1d"
    latents: int = Field(5, gt=0)
    code_dim: int = Field(2, gt=0)
    vocabularies: tuple[int, ...] = (7, 300, 70_000)

    @property
    def layout(self) -> TokenLayout:
        """One group, and a fold per codebook."""
        return TokenLayout((self.latents,), self.vocabularies)


class ToyGeneratorConfig(GeneratorConfig):
    """One position after another, from the ids of those before it."""

    kind: Literal["toy-raster"] = "toy-raster"
    width: int = Field(8, gt=0)
    most_positions: int = 64

    def check_layout(self, layout: TokenLayout, forcing_width: int | None) -> None:
        """Any tokens will do, if there are few."""
        if layout.positions > self.most_positions:
            raise ValueError(f"toy-raster predicts at most {self.most_positions} positions, not {layout.positions}")


TOKENIZER = TokenizerFamily(ToyTokenizerConfig, "toy_networks:ToyTokenizer")
GENERATOR = GeneratorFamily(ToyGeneratorConfig, "toy_networks:ToyGenerator")
