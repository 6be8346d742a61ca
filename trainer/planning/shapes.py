"""The parameters of every network, from its config alone: how many, which of them a matrix product uses.

Widths: C of the transformer, V codebook size, F folds. No torch is imported, except to ask timm for the sizes of a
backbone that a config names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from model.config import ClassifierConfig, ImageFolderConfig, NextScaleConfig, ViTConfig


@dataclass(frozen=True)
class Weight:
    """One parameter of a network."""

    shape: tuple[int, ...]
    multiplied: bool = False
    """Whether it is the matrix of a product that autocast computes in 16 bits, so that it has a copy in 16 bits."""

    @property
    def numel(self) -> int:
        """Its elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


Weights = list[Weight]


@dataclass(frozen=True)
class Trunk:
    """The sizes of a plain vision transformer."""

    width: int
    depth: int
    heads: int
    hidden: int
    layer_scale: bool


def linear(inputs: int, outputs: int, *, bias: bool = True, fp32: bool = False) -> Weights:
    """A linear layer; `fp32` where it is computed so in any case."""
    return [Weight((outputs, inputs), not fp32)] + ([Weight((outputs,), not fp32)] if bias else [])


def trunk_of(config: ViTConfig, image_size: int, patch_size: int) -> Trunk:
    """The sizes of an encoder or decoder.

    Raises:
        ValueError: if timm has no such backbone, or its blocks are not plain ones.
    """
    if config.backbone is None:
        hidden = int(config.width * config.mlp_ratio)
        return Trunk(config.width, config.depth, config.heads, hidden, bool(config.layer_scale))
    return _named_trunk(config.backbone, image_size, patch_size)


@lru_cache(maxsize=8)
def _named_trunk(backbone: str, image_size: int, patch_size: int) -> Trunk:
    import torch
    from timm.layers.mlp import Mlp
    from torch import nn

    from model.layers.vit import build_trunk

    with torch.device("meta"):
        trunk = build_trunk(ViTConfig(backbone=backbone), image_size, patch_size)
    block: Any = trunk.blocks[0]
    mlp = block.mlp
    if not isinstance(mlp, Mlp) or not isinstance(mlp.fc1, nn.Linear):
        raise ValueError(f"backbone {backbone}: its blocks have a {type(mlp).__name__}, which cannot be planned for")  # noqa: TRY004
    scaled = not isinstance(block.ls1, nn.Identity)
    return Trunk(trunk.embed_dim, len(trunk.blocks), block.attn.num_heads, mlp.fc1.out_features, scaled)


def generator_weights(config: NextScaleConfig, tokenizer: ImageFolderConfig) -> Weights:
    """Every parameter of `FoldedGenerator`."""
    width, layout = config.width, tokenizer.layout
    hidden = round(width * config.mlp_ratio)
    found = [Weight((config.classes + 1, width)), Weight((layout.groups[0], width))]
    found += [Weight((layout.positions, width)), Weight((len(layout.groups), width))]
    found += linear(layout.folds * tokenizer.code_dim, width, fp32=True)
    for _ in range(config.depth):
        found += linear(width, 3 * width, bias=False)
        found += [Weight((width,)), Weight((width,))] + ([Weight((config.heads,))] if config.qk_norm else [])
        found += linear(width, width) + linear(width, hidden) + linear(hidden, width)
        found += [Weight((6, width))] if config.shared_adaln else linear(width, 6 * width)
    found += linear(width, 6 * width) if config.shared_adaln else []
    found += linear(width, 2 * width)
    return found + linear(width, layout.folds * layout.vocabulary(), fp32=True)


def _trunk_weights(trunk: Trunk, patches: int) -> Iterator[Weight]:
    width, hidden = trunk.width, trunk.hidden
    yield from (Weight((1, 1, width)), Weight((1, 1 + patches, width)), Weight((width,)), Weight((width,)))
    for _ in range(trunk.depth):
        yield from (Weight((width,)) for _ in range(4 + 2 * trunk.layer_scale))
        for inputs, outputs in ((width, 3 * width), (width, width), (width, hidden), (hidden, width)):
            yield from linear(inputs, outputs)


def tokenizer_weights(config: ImageFolderConfig) -> Weights:
    """Every parameter of `ImageFolderTokenizer`."""
    size, patch, dim = config.image_size, config.patch_size, config.code_dim
    encoder, decoder = (trunk_of(vit, size, patch) for vit in (config.encoder, config.decoder))
    patches, cells = (size // patch) ** 2, config.grid**2
    found = [*_trunk_weights(encoder, patches), *linear(3 * patch**2, encoder.width)]
    found += [Weight((config.branches * cells, encoder.width)), Weight((config.branches + 1, encoder.width))]
    found += [*_trunk_weights(decoder, patches), Weight((decoder.width,)), Weight((2, decoder.width))]
    found += linear(decoder.width, 3 * patch**2) + linear(encoder.width, dim)
    found += linear(config.branches * dim, decoder.width)
    for _ in range(config.branches):
        found.append(Weight((config.codebook_size, dim)))
        for _ in range(config.shared_residual_convs or len(config.scales)):
            found += [Weight((dim, dim, 3, 3)), Weight((dim,))]
    return found + (linear(config.teacher_width, dim) if config.teacher_width else [])


def classifier_weights(config: ClassifierConfig) -> Weights:
    """Every parameter of `Classifier`."""
    found: Weights = []
    last = 3
    for width in config.widths:
        found += [Weight((width, last, 3, 3), multiplied=True), Weight((width,)), Weight((width,))]
        last = width
    return found + linear(last, config.classes)


def count(weights: Weights) -> int:
    """Elements of all parameters."""
    return sum(weight.numel for weight in weights)
