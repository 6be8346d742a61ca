"""ImageFolder's encoder and decoder: vision transformers that carry latents beside the image (arXiv 2410.01756, 3.1).

The encoder reads the image's patches and, per branch, a grid of learned queries; what stands at the queries at the end
is the latent. The decoder reads the quantized latent beside one mask token per patch, which become the pixels. Both
give latents the position table of the image, resized to the latent grid, and tell the parts apart by a level embedding.

Shapes: B batch, N patches, D width of the transformer, P branches, K latent positions of one branch, Q = P * K queries,
H = W side of the image in pixels, L tokens in all.
"""

from __future__ import annotations

import math

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from model.config import ViTConfig
from model.layers.precision import without_autocast
from model.layers.random_numbers import block_chances, drop_path

_TIMM_STD = 0.02
"""Deviation of the linear weights of timm's vision transformers, whatever their width."""


class ImageBlock(Block):
    """timm's block, whose stochastic depth follows from numbers that it is given, not from torch's generator."""

    def forward(self, x_BLD: Tensor, chance_2B: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """One block; `chance_2B` says which samples miss attention and MLP in training (`random_numbers.py`)."""
        attention_B, mlp_B = (None, None) if chance_2B is None else chance_2B.unbind()
        x_BLD = x_BLD + _drop(self.drop_path1, self.ls1(self.attn(self.norm1(x_BLD))), attention_B)
        return x_BLD + _drop(self.drop_path2, self.ls2(self.mlp(self.norm2(x_BLD))), mlp_B)


def _drop(layer: nn.Module, x_BLD: Tensor, chance_B: Tensor | None) -> Tensor:
    """What timm's layer of stochastic depth does; it is the identity where there is none."""
    if isinstance(layer, DropPath) and layer.training and layer.drop_prob:
        return drop_path(x_BLD, chance_B, layer.drop_prob)
    return x_BLD


def build_trunk(config: ViTConfig, image_size: int, patch_size: int) -> VisionTransformer:
    """A timm vision transformer with a class token and no head: named, or of the given sizes.

    Raises:
        ValueError: if the named model does not exist, or is no plain ViT with a class token and learned positions.
    """
    if config.backbone is not None:
        trunk = _named_trunk(config.backbone, config, image_size, patch_size)
    else:
        trunk = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            init_values=config.layer_scale,
            drop_path_rate=config.drop_path,
        )
        _scale_blocks(trunk, config.initial_std / _TIMM_STD)
    for block in trunk.blocks:
        block.__class__ = ImageBlock  # the same module with another forward: a module around it would rename weights
    return trunk


@torch.no_grad()
def _scale_blocks(trunk: VisionTransformer, factor: float) -> None:
    for module in trunk.blocks.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(factor)


def _named_trunk(name: str, config: ViTConfig, image_size: int, patch_size: int) -> VisionTransformer:
    if not timm.is_model(name):
        raise ValueError(f"backbone {name}: timm {timm.__version__} knows no model of this name")
    try:
        trunk = timm.create_model(
            name,
            pretrained=config.pretrained,
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            drop_path_rate=config.drop_path,
        )
    except TypeError:  # it takes no img_size or no patch_size
        trunk = None
    rows = 1 + (image_size // patch_size) ** 2
    if (
        not isinstance(trunk, VisionTransformer)
        or trunk.pos_embed is None
        or trunk.pos_embed.shape[1] != rows
        or any(type(block) is not Block for block in trunk.blocks)
    ):
        raise ValueError(
            f"backbone {name}: needs a plain ViT with a class token and learned absolute positions "
            "(for instance vit_base_patch14_dinov2.lvd142m, not its _reg4 variant)"
        )
    return trunk


def resize_positions(positions_1LD: Tensor, side: int) -> Tensor:
    """The position table of a [side, side] grid: bicubic and antialiased, in float32, the class row as it is."""
    table = positions_1LD.float()
    old = math.isqrt(table.shape[1] - 1)
    if old == side:
        return table
    grid = rearrange(table[:, 1:], "one (h w) d -> one d h w", h=old)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:, :1], rearrange(grid, "one d h w -> one (h w) d")], dim=1)


def _level_embedding(levels: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(levels, width), std=math.sqrt(1 / (3 * width))))


def _class_and_positions(trunk: VisionTransformer) -> tuple[Tensor, Tensor]:
    """Class token [1, 1, D] and position table [1, 1 + N, D], in float32."""
    assert trunk.cls_token is not None
    assert trunk.pos_embed is not None
    return trunk.cls_token.float(), trunk.pos_embed.float()


def _run(trunk: VisionTransformer, tokens_BLD: Tensor, seed_B: Tensor | None) -> Tensor:
    """The blocks, on tokens that were put together in float32."""
    assert trunk.cls_token is not None
    tokens_BLD = tokens_BLD.to(trunk.cls_token.dtype)
    for block, chance_2B in zip(trunk.blocks, block_chances(seed_B, len(trunk.blocks)), strict=True):
        tokens_BLD = block(tokens_BLD, chance_2B)
    return tokens_BLD


class ImageEncoder(nn.Module):
    """Pixels to one feature per branch and latent position."""

    def __init__(self, config: ViTConfig, image_size: int, patch_size: int, grid: int, branches: int) -> None:
        super().__init__()
        self.grid, self.branches = grid, branches
        self.trunk = build_trunk(config, image_size, patch_size)
        self.width: int = self.trunk.embed_dim
        self.queries_QD = nn.Parameter(nn.init.normal_(torch.empty(branches * grid**2, self.width), std=1e-6))
        self.level = _level_embedding(branches + 1, self.width)

    def forward(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] -> features [B, P * K, D], branch by branch, row by row.

        Stochastic depth in training needs seeds (`random_numbers.py`).
        """
        image_BCHW = image_BCHW.to(self.trunk.patch_embed.proj.weight.dtype)
        patches_BND = self.trunk.patch_embed(image_BCHW).float()
        batch, count = len(patches_BND), len(self.queries_QD)
        level = self.level.float()
        with without_autocast(patches_BND.device):
            cls_11D, table_1LD = _class_and_positions(self.trunk)
            image_1LD = table_1LD + level[0]
            latent_1KD = resize_positions(table_1LD, self.grid)[:, 1:]
            queries_PKD = self.queries_QD.view(self.branches, -1, self.width) + latent_1KD + level[1:, None]
        parts = [(cls_11D + image_1LD[:, :1]).expand(batch, -1, -1), patches_BND + image_1LD[:, 1:]]
        parts.append(queries_PKD.reshape(1, count, -1).expand(batch, -1, -1))
        tokens_BLD = _run(self.trunk, torch.cat(parts, dim=1), seed_B)
        return self.trunk.norm(tokens_BLD[:, -count:])  # type: ignore[no-any-return]


class ImageDecoder(nn.Module):
    """One feature per latent position back to pixels."""

    def __init__(self, config: ViTConfig, image_size: int, patch_size: int, grid: int) -> None:
        super().__init__()
        self.grid, self.patch_size = grid, patch_size
        self.patches = image_size // patch_size
        self.trunk = build_trunk(config, image_size, patch_size)
        del self.trunk.patch_embed  # only the encoder reads pixels
        self.width: int = self.trunk.embed_dim
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(self.width), std=1e-6))
        self.level = _level_embedding(2, self.width)
        self.to_pixel = nn.Linear(self.width, 3 * patch_size**2)

    def forward(self, latent_BKD: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Features [B, K, D] -> image [B, 3, H, W], not clamped; stochastic depth in training needs seeds."""
        batch, level = len(latent_BKD), self.level.float()
        with without_autocast(latent_BKD.device):
            cls_11D, table_1LD = _class_and_positions(self.trunk)
            masks_1ND = self.mask_token.float().expand(1, self.patches**2, -1)
            image_1LD = torch.cat([cls_11D, masks_1ND], dim=1) + table_1LD + level[0]
            latent_1LD = resize_positions(table_1LD, self.grid) + level[1]
            # the latents have a class slot of their own here, and none in the encoder
            slot_BLD = (cls_11D + latent_1LD[:, :1]).expand(batch, -1, -1)
            parts = [image_1LD.expand(batch, -1, -1), slot_BLD, latent_BKD.float() + latent_1LD[:, 1:]]
        tokens_BLD = _run(self.trunk, torch.cat(parts, dim=1), seed_B)
        patches_BND = self.to_pixel(self.trunk.norm(tokens_BLD[:, 1 : 1 + self.patches**2]))
        return self._unpatchify(patches_BND)

    def _unpatchify(self, patches_BND: Tensor) -> Tensor:
        """Each patch holds its pixels as (row, column, colour)."""
        sides = {"rows": self.patches, "p": self.patch_size, "q": self.patch_size}
        return rearrange(patches_BND, "b (rows columns) (p q c) -> b c (rows p) (columns q)", **sides)
