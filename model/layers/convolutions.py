"""Parts of convolutional autoencoders: residual blocks, attention over the grid, halving and doubling of the side.

They are VQ-GAN's (arXiv 2012.09841), with what LlamaGen, VAR and MaskGIT make of them as options.

    ResidualBlock     norm, swish, 3x3, norm, swish, 3x3, and the input (or, through 1x1, what MaskGIT adds instead)
    GridAttention     norm, one head over all cells, 1x1, and the input
    PaddedHalving     3x3 of stride 2 after zeros at the bottom and at the right
    StridedHalving    norm, swish, 4x4 of stride 2, to another width
    NearestDoubling   each cell four times, then 3x3
    StridedDoubling   norm, swish, transposed 4x4 of stride 2, to another width

Shape suffixes: B batch, C channels, H = W side of the grid, L = H * W cells, N heads (one).
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.layers.attention import attend
from model.layers.precision import compute_dtype, without_autocast

EPSILON = 1e-6
"""Of every normalization."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side, as TensorFlow's "SAME" has them: the output's side is size / stride, rounded up.

    Of an odd number the smaller half comes first, so that 3 at stride 2 is (0, 1) at even sizes and (1, 1) at odd ones.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME", by the size of its input."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride], rounded up."""
        rows = same_padding(x_BCHW.shape[2], self.kernel_size[0], self.stride[0])
        columns = same_padding(x_BCHW.shape[3], self.kernel_size[1], self.stride[1])
        return super().forward(F.pad(x_BCHW, (*columns, *rows)))


class ChannelNorm(nn.GroupNorm):
    """GroupNorm whose result has the dtype in which convolutions compute; torch's statistics are float32 in any case.

    Autocast on a GPU would have the norm and the swish after it in float32, and keep twice the bytes for backward.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(groups, width, eps=EPSILON)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalize each sample's groups of channels."""
        dtype = compute_dtype(self.weight)
        with without_autocast(x_BCHW.device):
            weight, bias = self.weight.to(dtype), self.bias.to(dtype)
            return F.group_norm(x_BCHW.to(dtype), self.num_groups, weight, bias, self.eps)


class ResidualBlock(nn.Module):
    """Two convolutions beside the input.

    Args:
        width_in: channels of the input.
        width: channels of the output.
        groups: of each normalization.
        bias: whether the convolutions have one.
        cheap: the second convolution is 1x1, and has no normalization before it.
        shortcut_of_branch: where the width changes, what the convolutions gave goes through the 1x1 shortcut in the
            input's place (MaskGIT).
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        groups: int,
        *,
        bias: bool = True,
        cheap: bool = False,
        shortcut_of_branch: bool = False,
    ) -> None:
        super().__init__()
        self.shortcut_of_branch = shortcut_of_branch
        self.norm1 = ChannelNorm(width_in, groups)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=bias)
        self.norm2 = nn.Identity() if cheap else ChannelNorm(width, groups)
        self.conv2 = nn.Conv2d(width, width, 1 if cheap else 3, padding=0 if cheap else 1, bias=bias)
        self.shortcut = None
        if width_in != width:
            self.shortcut = nn.Conv2d(width if shortcut_of_branch else width_in, width, 1, bias=bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        branch_BCHW: Tensor = self.conv1(F.silu(self.norm1(x_BCHW)))
        branch_BCHW = self.conv2(F.silu(self.norm2(branch_BCHW)))
        if self.shortcut is not None:
            x_BCHW = self.shortcut(branch_BCHW if self.shortcut_of_branch else x_BCHW)
        return x_BCHW + branch_BCHW


class GridAttention(nn.Module):
    """One head over all cells of the grid, beside the input. Logits are scaled by 1 / sqrt(C)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width, groups)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        side = x_BCHW.shape[-1]
        qkv_BLC = rearrange(self.qkv(self.norm(x_BCHW)), "b c h w -> b (h w) 1 c").contiguous()
        mixed_BLNC = attend(*qkv_BLC.chunk(3, dim=-1))
        mixed_BCHW: Tensor = self.proj(rearrange(mixed_BLNC, "b (h w) n c -> b (n c) h w", w=side))
        return x_BCHW + mixed_BCHW


class PaddedHalving(nn.Conv2d):
    """3x3 of stride 2 after a row of zeros at the bottom and a column at the right."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / 2, W / 2]."""
        return super().forward(F.pad(x_BCHW, (0, 1, 0, 1)))


class StridedHalving(nn.Module):
    """Norm, swish and 4x4 of stride 2, to another width."""

    def __init__(self, width_in: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width_in, groups)
        self.conv = nn.Conv2d(width_in, width, 4, stride=2, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / 2, W / 2]."""
        halved: Tensor = self.conv(F.silu(self.norm(x_BCHW)))
        return halved


class NearestDoubling(nn.Conv2d):
    """Each cell four times, then 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2 * H, 2 * W]."""
        return super().forward(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class StridedDoubling(nn.Module):
    """Norm, swish and a transposed 4x4 of stride 2, to another width."""

    def __init__(self, width_in: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width_in, groups)
        self.conv = nn.ConvTranspose2d(width_in, width, 4, stride=2, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', 2 * H, 2 * W]."""
        doubled: Tensor = self.conv(F.silu(self.norm(x_BCHW)))
        return doubled


def run(blocks: nn.ModuleList, x_BCHW: Tensor) -> Tensor:
    """One after another."""
    for block in blocks:
        x_BCHW = block(x_BCHW)
    return x_BCHW
