"""Quantizers that tests make: any kind alone, or around scales and branches."""

from __future__ import annotations

from typing import Any

import torch

from model.config import ImageFolderConfig, QuantizerConfig
from model.families import build_quantizer


def made(config: QuantizerConfig, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_quantizer(config)


def grid(quantizer: QuantizerConfig, **changes: Any) -> ImageFolderConfig:
    torch.manual_seed(4)
    options: dict[str, Any] = {"quantizer": quantizer, "scales": (1, 2, 3), "branches": 2, "dropout_min_scales": 1}
    return ImageFolderConfig.model_validate(options | changes)
