"""TiTok's transformers: latents that stand behind the image's patches, and come out as codes (arXiv 2406.07550, 3.2).

    encoder   [class | patches     | latents]  -> what stands at the latents, one vector each
    decoder   [class | mask tokens | latents]  -> what stands at the mask tokens, one vector each

Each has its own class token and position tables: one of the class token and the image, one of the latents. The class
token is a place to attend to, and nothing reads it.

Shapes: B batch, N patches, K latents, C channels of a latent, D width of a transformer, H = W side of the image in
pixels, L = 1 + N + K.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from model.config.titok import TiTokViTConfig


class LatentViT(nn.Module):
    """What encoder and decoder share: class token, position tables, norms and blocks."""

    def __init__(self, config: TiTokViTConfig, patches: int, latents: int) -> None:
        super().__init__()
        width = config.width
        self.width, self.patches, self.latents = width, patches, latents
        self.class_embedding = _table(1, width)
        self.image_positions = _table(1 + patches**2, width)
        self.latent_positions = _table(latents, width)
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm_post = nn.LayerNorm(width)

    def run(self, image_BND: Tensor, latent_BKD: Tensor) -> Tensor:
        """The tokens [B, 1 + N + K, D] after the blocks, before `norm_post`; put together in float32."""
        class_B1D = self.class_embedding.float().expand(len(image_BND), 1, -1)
        image_BLD = torch.cat([class_B1D, image_BND.float()], dim=1) + self.image_positions.float()
        latent_BKD = latent_BKD.float() + self.latent_positions.float()
        tokens_BLD: Tensor = self.norm_pre(torch.cat([image_BLD, latent_BKD], dim=1).to(self.class_embedding.dtype))
        for block in self.blocks:
            tokens_BLD = block(tokens_BLD)
        return tokens_BLD


class LatentEncoder(LatentViT):
    """Pixels to K vectors.

    Args:
        config: sizes.
        image_size: side H of the image.
        latents: K.
        channels: C of each vector that comes out.
        interleaved: read the latents at the end in the layout of the published two-stage models: the memory of
            [K, D] is taken for [D, K], so that each vector mixes channels of many latents (specs of TiTok, 1.3).
    """

    def __init__(
        self, config: TiTokViTConfig, image_size: int, latents: int, channels: int, *, interleaved: bool = False
    ) -> None:
        super().__init__(config, image_size // config.patch_size, latents)
        self.interleaved = interleaved
        self.patch_embedding = nn.Conv2d(3, self.width, config.patch_size, stride=config.patch_size)
        self.latent_tokens = _table(latents, self.width)
        self.to_latent = nn.Linear(self.width, channels)
        self.apply(init_weights)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] -> vectors [B, K, C]."""
        image_BCHW = image_BCHW.to(self.patch_embedding.weight.dtype)
        patches_BND = rearrange(self.patch_embedding(image_BCHW), "b d h w -> b (h w) d")
        latents_BKD = self.latent_tokens.expand(len(image_BCHW), -1, -1)
        tokens_BLD = self.run(patches_BND, latents_BKD)
        at_latents_BKD: Tensor = self.norm_post(tokens_BLD[:, -self.latents :])
        if self.interleaved:
            at_latents_BKD = interleave(at_latents_BKD)
        vectors_BKC: Tensor = self.to_latent(at_latents_BKD)
        return vectors_BKC


class LatentDecoder(LatentViT):
    """K vectors to one vector per patch.

    Args:
        config: sizes.
        image_size: side H of the image.
        latents: K.
        channels: C of each vector that goes in.
    """

    def __init__(self, config: TiTokViTConfig, image_size: int, latents: int, channels: int) -> None:
        super().__init__(config, image_size // config.patch_size, latents)
        self.from_latent = nn.Linear(channels, self.width)
        self.mask_token = _table(1, self.width)
        self.apply(init_weights)

    def forward(self, vectors_BKC: Tensor) -> Tensor:
        """Vectors [B, K, C] -> [B, N, D], row by row."""
        latents_BKD = self.from_latent(vectors_BKC.to(self.from_latent.weight.dtype))
        masks_BND = self.mask_token.expand(len(vectors_BKC), self.patches**2, -1)
        tokens_BLD = self.run(masks_BND, latents_BKD)
        found: Tensor = self.norm_post(tokens_BLD[:, 1 : 1 + self.patches**2])
        return found


class CodeHead(nn.Module):
    """Logits over a proxy's codes at each patch."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 2 * width)
        self.to_logits = nn.Linear(2 * width, codes)
        self.apply(init_weights)

    def forward(self, patches_BND: Tensor) -> Tensor:
        """[B, N, D] -> logits [B, N, V]."""
        logits_BNV: Tensor = self.to_logits(torch.tanh(self.hidden(patches_BND)))
        return logits_BNV


class PixelHead(nn.Module):
    """The pixels of each patch, and a convolution over their seams."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.to_pixel = nn.Linear(width, 3 * patch_size**2)
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        self.apply(init_weights)

    def forward(self, patches_BND: Tensor) -> Tensor:
        """[B, N, D] -> image [B, 3, H, W], not clamped. Each patch holds its pixels as (row, column, colour)."""
        rows, p = math.isqrt(patches_BND.shape[1]), self.patch_size
        pixels_BNX = self.to_pixel(patches_BND)
        image_BCHW = rearrange(pixels_BNX, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)
        seen_BCHW: Tensor = self.conv_out(image_BCHW)
        return seen_BCHW


def interleave(tokens_BKD: Tensor) -> Tensor:
    """The memory of [K, D] read as [D, K], and transposed: what the published two-stage models take for K vectors.

    Of the vector k, channel j is the number j * K + k of the sample's memory.
    """
    return tokens_BKD.reshape(len(tokens_BKD), tokens_BKD.shape[2], tokens_BKD.shape[1]).transpose(1, 2)


def init_weights(module: nn.Module) -> None:
    """As published: all linear and convolutional weights from N(0, 0.02^2) and biases 0; attention's input is apart."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, Block):  # after its own layers: torch's projection of queries, keys and values, as published
        nn.init.xavier_uniform_(module.get_parameter("attn.qkv.weight"))


def _table(rows: int, width: int) -> nn.Parameter:
    """Learned rows, N(0, 1 / width)."""
    return nn.Parameter(torch.randn(rows, width) * width**-0.5)


def _block(config: TiTokViTConfig) -> Block:
    return Block(config.width, config.heads, config.mlp_ratio, qkv_bias=True, norm_layer=nn.LayerNorm)
