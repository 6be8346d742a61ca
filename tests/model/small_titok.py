"""A TiTok of 16 pixels and 5 latents, which tests make: in one stage, or in two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.config import VectorConfig
from model.config.titok import PixelDecoderConfig, TiTokConfig, TiTokViTConfig
from model.tokenizers.titok import TiTokTokenizer

SMALL = TiTokViTConfig(width=24, depth=2, heads=3, patch_size=4)
CODES = VectorConfig(codebook_size=16, code_dim=6, lookup="euclidean", unit_codes=True, initialization="uniform")
PAINTER = PixelDecoderConfig(code_dim=8, widths=(4, 4, 8), blocks=(1,), norm_groups=2)
"""Paints each code as 4 x 4 pixels."""


def config_of(**changes: Any) -> TiTokConfig:
    given = {"image_size": 16, "latents": 5, "encoder": SMALL, "decoder": SMALL, "quantizer": CODES, "proxy_codes": 32}
    return TiTokConfig(**(given | changes))


def tokenizer_of(**changes: Any) -> TiTokTokenizer:
    torch.manual_seed(0)
    return TiTokTokenizer(config_of(**changes))


def stage_1(**changes: Any) -> TiTokTokenizer:
    return tokenizer_of(target="codes", pixel_decoder=PAINTER, **changes)


def stage_2(**changes: Any) -> TiTokTokenizer:
    return tokenizer_of(target="pixels", pixel_decoder=PAINTER, **changes)


def images(batch: int = 2, size: int = 16) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def seeds(batch: int = 2) -> Tensor:
    return torch.arange(batch)
