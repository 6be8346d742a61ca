"""Which check belongs to which family: by the name that model/published/families.py gives it.

A check takes the network that was loaded and what is in io.safetensors, and compares all of it: latent, tokens,
quantized latent, reconstruction. It knows no size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.model.published import convolutions, imagefolder, llamagen, maskgit, rar, titok, var

Check = Callable[[Any, dict[str, Tensor]], None]

CHECKS: dict[str, Check] = {
    "ImageFolder MSVR tokenizer": imagefolder.check,
    "ImageFolder MSBR tokenizer": imagefolder.check,
    "ImageFolder VQ tokenizer": imagefolder.check,
    "TiTok": titok.check,
    "VAR generator": var.check,
    "LlamaGen generator": llamagen.check,
    "RAR generator": rar.check,
    "masked generator of TiTok with BERT": maskgit.check,
    "masked generator of TiTok with U-ViT": maskgit.check,
    "VQ-GAN of LlamaGen or XQ-GAN": convolutions.check,
    "VAR tokenizer": convolutions.check,
    "MaskGIT-VQGAN": convolutions.check_maskgit,
}
