"""What all networks of generators have in common."""

from __future__ import annotations

from torch import nn

from model.config import GeneratorConfig
from model.layout import TokenLayout


class GeneratorNetwork(nn.Module):
    """A network that predicts the tokens of a layout, given a class or none.

    Args:
        config: of it.
        layout: of the tokens.
    """

    config: GeneratorConfig
    layout: TokenLayout

    def __init__(self, config: GeneratorConfig, layout: TokenLayout) -> None:
        super().__init__()
        self.config, self.layout = config, layout

    @property
    def null_class(self) -> int:
        """The label that means "no class"."""
        return self.config.classes
