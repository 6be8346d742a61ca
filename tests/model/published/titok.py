"""What a published TiTok computed at home, with any head and bottleneck. Its images are in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from model.quantizers.gaussian import gaussian_of
from model.tokenizers.titok import TiTokTokenizer
from tests.model.published.closeness import close


def check(tokenizer: TiTokTokenizer, io: dict[str, Tensor]) -> None:
    """Latent, tokens, quantized latent, and what the decoder makes of the first image: pixels, or logits of stage 1."""
    image_BCHW = io["image_uint8"].float() / 127.5 - 1
    vectors_BKC = tokenizer.encode(image_BCHW)
    if tokenizer.quantizer is None:
        gaussian = gaussian_of(vectors_BKC)
        close(_as_map(gaussian.mean_BKC), io["mean"])
        close(_as_map(gaussian.logvar_BKC), io["logvar"])
        code_BKC = gaussian.mean_BKC
    else:
        close(_as_map(vectors_BKC), io["latent"])
        tokens_BLF = tokenizer.tokenize(image_BCHW)
        assert torch.equal(tokens_BLF[..., 0], io["tokens"])
        code_BKC = tokenizer.quantizer.dequantize(tokens_BLF[..., 0])
        close(_as_map(code_BKC), io["quantized"])
    expected = io["reconstruction"]
    if tokenizer.config.target == "codes":
        logits_BNV = tokenizer.patches(code_BKC[:1])
        close(logits_BNV.mT.reshape(expected.shape), expected)
    else:
        close((tokenizer.decode(code_BKC[:1]) + 1) / 2, expected, tolerance=1e-3)


def _as_map(vectors_BKC: Tensor) -> Tensor:
    """[B, K, C] -> [B, C, 1, K], as the published models carry vectors."""
    return vectors_BKC.mT[:, :, None]
