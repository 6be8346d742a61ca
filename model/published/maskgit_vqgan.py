"""MaskGIT's VQ-GAN in the names of its PyTorch port, as TiTok and RAR publish it, mapped to `MaskgitVqganTokenizer`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import MaskgitVqganConfig
from model.published.convolutions import WHAT, Style, decoder_of, encoder_of, fill
from model.published.fitting import shape_of
from model.published.options import Options, whole_number
from model.published.vqgan import SIZE, codebook
from model.tokenizers.maskgit_vqgan import MaskgitVqganTokenizer

STYLE = Style(
    levels={"encoder": "down", "decoder": "up"},
    from_pixels=True,
    block="block",
    resampling={"encoder": "none", "decoder": "upsample_conv"},
    middle=("{place}", "{place}"),
)
IGNORED = re.compile(r"")
"""Nothing."""


def recognizes(config: Options, state: Mapping[str, Tensor]) -> bool:
    """Whether these are its levels: the first convolution has no bias, and a mean halves the side."""
    del config
    levels = {"encoder.down.0.block.0.conv1.weight", "decoder.up.1.upsample_conv.weight", codebook(0, 1)}
    return state.keys() >= levels and "encoder.conv_in.bias" not in state


def load_tokenizer(config: Options, state: Mapping[str, Tensor]) -> MaskgitVqganTokenizer:
    """A published tokenizer with its weights, in float32 and eval mode; they may share the state's memory.

    Args:
        config: the published options, of which none is needed: `resolution`, the side of the image, is 256 otherwise.
        state: the published parameters. All other sizes follow from their shapes.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or the option that is wrong.
    """
    own = tokenizer_config(config, state)
    with torch.device("meta"):
        tokenizer = MaskgitVqganTokenizer(own)
    fill(tokenizer, state, STYLE, lambda _: codebook(0, 1), IGNORED)
    return tokenizer


def tokenizer_config(config: Options, state: Mapping[str, Tensor]) -> MaskgitVqganConfig:
    """This project's config of a published tokenizer.

    Raises:
        ValueError: if a parameter is missing that sizes are read from, or an option is wrong.
    """
    default = MaskgitVqganConfig()
    encoder = encoder_of(state, STYLE, default.encoder)
    codes, width = shape_of(state, codebook(0, 1), 2, WHAT)
    size = whole_number(config, "resolution", SIZE)
    return MaskgitVqganConfig(
        image_size=size,
        scales=(-(-size // encoder.factor),),
        encoder=encoder,
        decoder=decoder_of(state, STYLE, default.decoder),
        quantizer=default.quantizer.model_copy(update={"codebook_size": codes, "code_dim": width}),
    )
