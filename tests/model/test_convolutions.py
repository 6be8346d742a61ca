"""Convolutional parts against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.convolutions import (
    ChannelNorm,
    GridAttention,
    NearestDoubling,
    PaddedHalving,
    ResidualBlock,
    SameConv2d,
    StridedDoubling,
    StridedHalving,
    same_padding,
)


def varied(module: nn.Module) -> nn.Module:
    """All parameters random, so that no norm is the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel()))
    return module


def grid(channels: int, side: int = 6, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


def normalized(x_BCHW: Tensor, norm: ChannelNorm, groups: int) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-6) over each sample's groups of channels, then a factor and a shift."""
    grouped = x_BCHW.unflatten(1, (groups, -1))
    mean, variance = grouped.mean((2, 3, 4), keepdim=True), grouped.var((2, 3, 4), correction=0, keepdim=True)
    x_BCHW = ((grouped - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
    return x_BCHW * norm.weight[:, None, None] + norm.bias[:, None, None]


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


# Padding


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (256, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (256, 4, 2, (1, 1)),
        (5, 3, 1, (1, 1)),
        (16, 1, 1, (0, 0)),
        (8, 2, 1, (0, 1)),
        (6, 2, 3, (0, 0)),
    ],
)
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == expected


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_same_convolution_of_any_kernel_has_the_side_divided_and_rounded_up(stride: int) -> None:
    for kernel in (1, 2, 3, 4, 5):
        conv = SameConv2d(1, 1, kernel, stride=stride)
        for rows, columns in ((12, 7), (9, 10)):
            out = conv(torch.zeros(1, 1, rows, columns))
            assert out.shape[2:] == (math.ceil(rows / stride), math.ceil(columns / stride))


def test_the_smaller_half_of_a_same_padding_comes_first() -> None:
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    sums = [[image[0, 0, r : r + 3, c : c + 3].sum().item() for c in (0, 2)] for r in (0, 2)]
    assert conv(image)[0, 0].tolist() == sums


# Blocks


@pytest.mark.parametrize("cheap", [False, True])
@pytest.mark.parametrize("of_branch", [False, True])
@pytest.mark.parametrize(("width_in", "width"), [(8, 8), (8, 12)])
def test_a_residual_block_is_its_formula(width_in: int, width: int, of_branch: bool, cheap: bool) -> None:
    block = varied(ResidualBlock(width_in, width, 4, cheap=cheap, shortcut_of_branch=of_branch))
    assert isinstance(block, ResidualBlock)
    x_BCHW = grid(width_in)
    branch = F.conv2d(swish(normalized(x_BCHW, block.norm1, 4)), block.conv1.weight, block.conv1.bias, padding=1)
    if isinstance(block.norm2, ChannelNorm):
        branch = normalized(branch, block.norm2, 4)
    branch = F.conv2d(swish(branch), block.conv2.weight, block.conv2.bias, padding=0 if cheap else 1)
    rest = x_BCHW
    if block.shortcut is not None:
        weight_OI = block.shortcut.weight[:, :, 0, 0]
        rest = torch.einsum("oi,bihw->bohw", weight_OI, branch if of_branch else x_BCHW)
        assert block.shortcut.bias is not None
        rest = rest + block.shortcut.bias[:, None, None]
    assert isinstance(block.norm2, ChannelNorm) is not cheap
    torch.testing.assert_close(block(x_BCHW), branch + rest, rtol=1e-4, atol=1e-5)


def test_only_a_block_that_changes_its_width_has_a_shortcut_and_biases_are_left_out_if_asked() -> None:
    names = {name for name, _ in ResidualBlock(8, 12, 4, bias=False).named_parameters()}
    assert names == {f"{part}.weight" for part in ("norm1", "conv1", "norm2", "conv2", "shortcut")} | {
        "norm1.bias",
        "norm2.bias",
    }
    assert ResidualBlock(8, 8, 4).shortcut is None


def test_attention_over_the_grid_is_one_head_with_the_scale_of_its_width() -> None:
    block = varied(GridAttention(8, 4))
    assert isinstance(block, GridAttention)
    x_BCHW = torch.cat([grid(8, 4), grid(8, 4)], dim=3)[:, :, :, :6]  # 4 rows of 6
    qkv = F.conv2d(normalized(x_BCHW, block.norm, 4), block.qkv.weight, block.qkv.bias)
    q, k, v = qkv.flatten(2).chunk(3, dim=1)  # [B, C, L]
    weights = (torch.einsum("bcl,bcm->blm", q, k) / math.sqrt(8)).softmax(-1)
    mixed = torch.einsum("blm,bcm->bcl", weights, v).view(2, 8, 4, 6)
    expected = x_BCHW + F.conv2d(mixed, block.proj.weight, block.proj.bias)
    torch.testing.assert_close(block(x_BCHW), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", [ResidualBlock(8, 12, 4), GridAttention(8, 4), StridedHalving(8, 4, 4)])
def test_a_part_computes_in_autocasts_dtype(part: nn.Module) -> None:
    seen: list[torch.dtype] = []
    for norm in part.modules():
        if isinstance(norm, ChannelNorm):
            norm.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = part(grid(8))
    assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(out.float(), part(grid(8)), rtol=0.05, atol=0.05)


# Sides


def test_padded_halving_reads_each_cell_and_what_is_below_and_right_of_it() -> None:
    halving = PaddedHalving(1)
    nn.init.ones_(halving.weight)
    assert halving.bias is not None
    nn.init.zeros_(halving.bias)
    image = grid(1)
    expected = [[image[0, 0, r : r + 3, c : c + 3].sum() for c in (0, 2, 4)] for r in (0, 2, 4)]
    torch.testing.assert_close(halving(image)[0, 0], torch.tensor(expected))


def test_nearest_doubling_repeats_each_cell_before_its_convolution() -> None:
    doubling = NearestDoubling(2)
    image = grid(2, 3)
    repeated = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(repeated, doubling.weight, doubling.bias, padding=1)
    torch.testing.assert_close(doubling(image), expected)


def test_strided_parts_normalize_and_change_side_and_width() -> None:
    halving, doubling = varied(StridedHalving(8, 12, 4)), varied(StridedDoubling(12, 8, 4))
    assert isinstance(halving, StridedHalving)
    assert isinstance(doubling, StridedDoubling)
    halved = F.conv2d(
        swish(normalized(grid(8), halving.norm, 4)), halving.conv.weight, halving.conv.bias, stride=2, padding=1
    )
    torch.testing.assert_close(halving(grid(8)), halved, rtol=1e-4, atol=1e-5)
    doubled = F.conv_transpose2d(
        swish(normalized(grid(12), doubling.norm, 4)), doubling.conv.weight, doubling.conv.bias, stride=2, padding=1
    )
    torch.testing.assert_close(doubling(grid(12)), doubled, rtol=1e-4, atol=1e-5)
    assert (halved.shape, doubled.shape) == ((2, 12, 3, 3), (2, 8, 12, 12))
