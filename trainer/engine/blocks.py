"""Blocks of transformers and convolutional autoencoders: computed twice to save memory, or compiled."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from data_pipeline.errors import UsageError


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The members of all lists named `blocks`, as timm and this project name them.

    Raises:
        UsageError: if the network has none.
    """
    found = [
        block
        for name, child in network.named_modules()
        if name.rsplit(".", 1)[-1] == "blocks" and isinstance(child, nn.ModuleList | nn.Sequential)
        for block in child
    ]
    if not found:
        raise UsageError(f"{type(network).__name__} has no blocks: set activation_checkpointing and compile to false")
    return found


def recompute_blocks(network: nn.Module) -> None:
    """Keep only the inputs of each block in forward, and compute it again in backward (arXiv 1604.06174).

    Stochastic depth is the same for the second time: what it follows from is an argument of the block.
    """
    for block in repeated_blocks(network):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(network: nn.Module) -> None:
    """Compile each block by itself: equal blocks share their code, and the rest of the network stays as it is."""
    for block in repeated_blocks(network):
        block.compile()
