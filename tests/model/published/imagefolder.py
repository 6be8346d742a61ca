"""What ImageFolder's tokenizers computed at home: latent, tokens, quantized sums, a generator's input, an image."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from model.config import VectorConfig
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.model.published.closeness import close


def check(tokenizer: ImageFolderTokenizer, io: dict[str, Tensor]) -> None:
    layout = tokenizer.layout
    image_BCHW = io["image_uint8"].float() / 127.5 - 1
    latent_BPCHW = tokenizer.encode(image_BCHW)
    branches_BCN = [latent_BCHW.flatten(2) for latent_BCHW in latent_BPCHW.unbind(1)]
    close(torch.cat(branches_BCN, dim=2), io["latent"].flatten(2))
    tokens_BLF = tokenizer.tokenize(image_BCHW)
    for branch in range(layout.folds):
        for scale in range(len(layout.groups)):
            expected = io[f"tokens.branch{branch}.scale{scale}"]
            assert torch.equal(tokens_BLF[:, layout.span(scale), branch], expected), f"branch {branch} scale {scale}"
    for name in (name for name in io if name.startswith("quantized.")):
        branch, scale = (int(number) for number in re.findall(r"\d+", name))
        close(tokenizer.quantizer.dequantize(tokens_BLF, layout.offsets[scale + 1])[:, branch], io[name])
    if len(layout.groups) > 1 and isinstance(tokenizer.config.quantizer, VectorConfig):  # not recorded of the others
        inputs = [io[f"generator_input.branch{branch}"] for branch in range(layout.folds)]
        close(tokenizer.quantizer.generator_input(tokens_BLF), torch.cat(inputs, dim=2))
    close(tokenizer.detokenize(tokens_BLF[:1]), io["reconstruction"], tolerance=1e-3)
