"""Trained networks, put together again from their exports."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from data_pipeline.shards import weights
from data_pipeline.shards.weights import Card
from model.config import GeneratorConfig, TokenizerConfig
from model.generators.next_scale import FoldedGenerator
from model.quantizers.multi_scale import FoldedQuantizer

if TYPE_CHECKING:
    import torch

    from model.tokenizers.imagefolder import ImageFolderTokenizer


def load_tokenizer(uri: str, device: torch.device) -> tuple[ImageFolderTokenizer, Card]:
    """The tokenizer with its moving-average weights, frozen, and its card."""
    from model.tokenizers.imagefolder import (
        ImageFolderTokenizer,  # its backbones are seconds to import; a generator needs none
    )

    card, state = weights.read_weights(uri, "tokenizer")
    config = weights.read_config(uri, card, TokenizerConfig).without_pretraining()
    tokenizer = weights.restore(uri, state, lambda: ImageFolderTokenizer(config))
    return tokenizer.to(device).eval().requires_grad_(False), card


def load_quantizer(uri: str, device: torch.device) -> tuple[FoldedQuantizer, TokenizerConfig]:
    """The tokenizer's quantizer alone, which is all that the generator's training needs of it."""
    card, state = weights.read_weights(uri, "tokenizer")
    config = weights.read_config(uri, card, TokenizerConfig)
    prefix = "quantizer."
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    quantizer = weights.restore(uri, own, lambda: FoldedQuantizer(config))
    return quantizer.to(device).eval().requires_grad_(False), config


def load_generator(uri: str, ema: bool, device: torch.device) -> tuple[FoldedGenerator, Card]:
    """The generator, frozen, and its card."""
    card, state = weights.read_weights(uri, "generator", ema)
    tokenizer = weights.read_config(uri, card, TokenizerConfig, "tokenizer")
    config = weights.read_config(uri, card, GeneratorConfig, "generator")
    make = functools.partial(FoldedGenerator, config, tokenizer.layout, tokenizer.code_dim)
    generator = weights.restore(uri, state, make)
    return generator.to(device).eval().requires_grad_(False), card
