"""Encoder and decoder of convolutional tokenizers: levels of residual blocks, halved and doubled.

    encoder: first convolution; of each level its blocks, then half the side; middle; norm, swish, last convolution
    decoder: first convolution; middle; of each level its blocks, then twice the side; norm, swish, last convolution

`levels` of both count from their own beginning: an encoder's from the pixels, a decoder's from the latent. What is in a
list named `blocks` may be computed twice to save memory, and be compiled (trainer/engine/blocks.py).

Shape suffixes: B batch, C channels, H = W side.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config.convolutional import ConvolutionalDecoderConfig, ConvolutionalEncoderConfig, ConvolutionsConfig
from model.layers.convolutions import (
    ChannelNorm,
    GridAttention,
    NearestDoubling,
    PaddedHalving,
    ResidualBlock,
    StridedDoubling,
    StridedHalving,
    run,
)


class Level(nn.Module):
    """The blocks at one side, and what comes before the next."""

    def __init__(self, blocks: nn.ModuleList, resampling: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.resampling = resampling

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> what the next level takes."""
        resampled: Tensor = self.resampling(run(self.blocks, x_BCHW))
        return resampled


class Middle(nn.Module):
    """The blocks beside the latent."""

    def __init__(self, config: ConvolutionsConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.blocks = _blocks(config, width, width, config.middle_blocks, attention=config.middle_attention)
        if config.middle_attention and len(self.blocks):
            del self.blocks[-1]  # none after the last

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return run(self.blocks, x_BCHW)


def _blocks(config: ConvolutionsConfig, width_in: int, width: int, count: int, *, attention: bool) -> nn.ModuleList:
    """Residual blocks, the first of which changes the width, with attention after each if there is any."""
    blocks = nn.ModuleList()
    for number in range(count):
        blocks.append(
            ResidualBlock(
                width if number else width_in,
                width,
                config.norm_groups,
                bias=config.residual_bias,
                cheap=config.residual == "3x3-1x1",
                shortcut_of_branch=config.shortcut == "branch",
            )
        )
        if attention:
            blocks.append(GridAttention(width, config.norm_groups))
    return blocks


class ConvolutionalEncoder(nn.Module):
    """Images [B, 3, H, W] -> latents [B, `width`, H / factor, W / factor]."""

    def __init__(self, config: ConvolutionalEncoderConfig, width: int) -> None:
        super().__init__()
        widths, strided = config.widths, config.downsampling == "strided"
        kernel, stride = (4, 2) if strided else (3, 1)
        self.start = nn.Conv2d(3, config.first_width, kernel, stride=stride, padding=1, bias=config.residual_bias)
        before = widths if strided else (config.first_width, *widths)  # what each level's blocks take
        self.levels = nn.ModuleList(
            Level(_level_blocks(config, level, before[level]), _halving(config, level)) for level in range(len(widths))
        )
        self.middle = Middle(config)
        self.norm = ChannelNorm(widths[-1], config.norm_groups)
        self.end = nn.Conv2d(widths[-1], width, config.end_kernel, padding=config.end_kernel // 2)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Any dtype; computed in that of the parameters, or autocast's."""
        x_BCHW = run(self.levels, self.start(image_BCHW.to(self.start.weight.dtype)))
        latent_BCHW: Tensor = self.end(F.silu(self.norm(self.middle(x_BCHW))))
        return latent_BCHW


class ConvolutionalDecoder(nn.Module):
    """Latents [B, `width`, H, W] -> images [B, 3, factor * H, factor * W], not clamped."""

    def __init__(self, config: ConvolutionalDecoderConfig, width: int) -> None:
        super().__init__()
        widths, strided = config.widths, config.upsampling == "transposed"
        self.start = nn.Conv2d(width, widths[-1], 3, padding=1)
        self.middle = Middle(config)
        before = widths if strided else (*widths[1:], widths[-1])  # what each level's blocks take
        self.levels = nn.ModuleList(
            Level(_level_blocks(config, level, before[level]), _doubling(config, level))
            for level in reversed(range(len(widths)))
        )
        self.norm = ChannelNorm(widths[0], config.norm_groups)
        self.end: nn.Conv2d | nn.ConvTranspose2d
        if strided:
            self.end = nn.ConvTranspose2d(widths[0], 3, 4, stride=2, padding=1)
        else:
            self.end = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent_BCHW: Tensor) -> Tensor:
        """Any dtype; computed in that of the parameters, or autocast's."""
        x_BCHW = self.middle(self.start(latent_BCHW.to(self.start.weight.dtype)))
        image_BCHW: Tensor = self.end(F.silu(self.norm(run(self.levels, x_BCHW))))
        return image_BCHW


def _level_blocks(config: ConvolutionsConfig, level: int, width_in: int) -> nn.ModuleList:
    count, attention = config.blocks_of(level), config.attends(level)
    return _blocks(config, width_in, config.widths[level], count, attention=attention)


def _halving(config: ConvolutionalEncoderConfig, level: int) -> nn.Module:
    """What an encoder has after a level: nothing after the last."""
    width, *following = config.widths[level:]
    if not following:
        return nn.Identity()
    if config.downsampling == "strided":
        return StridedHalving(width, following[0], config.norm_groups)
    return PaddedHalving(width) if config.downsampling == "padded" else nn.AvgPool2d(2)


def _doubling(config: ConvolutionalDecoderConfig, level: int) -> nn.Module:
    """What a decoder has after a level: nothing after the one beside the pixels."""
    width = config.widths[level]
    if level == 0:
        return nn.Identity()
    if config.upsampling == "transposed":
        return StridedDoubling(width, config.widths[level - 1], config.norm_groups)
    return NearestDoubling(width)
