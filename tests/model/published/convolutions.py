"""What convolutional tokenizers computed at home: latent, tokens, quantized sums, a generator's input, an image."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from model.tokenizers.maskgit_vqgan import MaskgitVqganTokenizer
from model.tokenizers.vqgan import ConvolutionalTokenizer
from tests.model.published.closeness import close


def check(tokenizer: ConvolutionalTokenizer, io: dict[str, Tensor]) -> None:
    """LlamaGen's, XQ-GAN's and VAR's, which have [-1, 1] inside; VAR's folder has no latent."""
    layout = tokenizer.layout
    image_BCHW = io["image_uint8"].float() / 127.5 - 1
    if "latent" in io:
        close(tokenizer.encode(image_BCHW).flatten(1, 2), io["latent"])
    tokens_BLF = tokenizer.tokenize(image_BCHW)
    for branch in range(layout.folds):
        for scale in range(len(layout.groups)):
            expected = io[f"tokens.branch{branch}.scale{scale}"]
            assert torch.equal(tokens_BLF[:, layout.span(scale), branch], expected), f"branch {branch} scale {scale}"
    for name in (name for name in io if name.startswith("quantized.")):
        branch, scale = (int(number) for number in re.findall(r"\d+", name))
        close(tokenizer.quantizer.dequantize(tokens_BLF, layout.offsets[scale + 1])[:, branch], io[name])
    inputs = [io[name] for name in sorted(io) if name.startswith("generator_input.")]
    assert len(inputs) == (layout.folds if len(layout.groups) > 1 else 0)
    if inputs:
        close(tokenizer.quantizer.generator_input(tokens_BLF), torch.cat(inputs, dim=2))
    _check_image(tokenizer.detokenize(tokens_BLF), io["reconstruction"].clamp(-1, 1))


def check_maskgit(tokenizer: MaskgitVqganTokenizer, io: dict[str, Tensor]) -> None:
    """MaskGIT's, which has [0, 1] inside; its parts alone, as TiTok uses them, and the whole."""
    torch.testing.assert_close(io["image"], io["image_uint8"].float() / 255, rtol=0, atol=1e-7)
    image_BCHW = io["image"] * 2 - 1
    close(tokenizer.encoder(io["image"]), io["latent"])
    close(tokenizer.encode(image_BCHW)[:, 0], io["latent"])
    tokens_BLF = tokenizer.tokenize(image_BCHW)
    assert torch.equal(tokens_BLF[..., 0], io["tokens"])
    side = io["quantized"].shape[-1]
    codes_BCHW = tokenizer.codebook[io["tokens"]].transpose(1, 2).unflatten(2, (side, side))
    close(codes_BCHW, io["quantized"])
    _check_image(tokenizer.decode_codes(codes_BCHW).clamp(0, 1), io["reconstruction"])
    _check_image((tokenizer.detokenize(tokens_BLF) + 1) / 2, io["reconstruction"])


def _check_image(image_BCHW: Tensor, expected_BCHW: Tensor) -> None:
    """Of as many images as the folder holds."""
    close(image_BCHW[: len(expected_BCHW)], expected_BCHW, tolerance=1e-3)
