"""VAR's multi-scale VQVAE: names and shapes, mapped to `ConvolutionalTokenizer`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from model.config import VectorConfig, VqganConfig
from model.published.convolutions import WHAT, Style, decoder_of, encoder_of, fill, joined_attention
from model.published.fitting import shape_of
from model.published.options import Options, flag, option, whole_numbers, wrong
from model.published.vqgan import codebook, convolutions_of, kernel_of, quantizer_name
from model.tokenizers.vqgan import ConvolutionalTokenizer

STYLE = Style(
    levels={"encoder": "down", "decoder": "up"},
    from_pixels=True,
    block="block",
    resampling={"encoder": "downsample.conv", "decoder": "upsample.conv"},
    middle=("block_{number}", "attn_{number}"),
)
IGNORED = re.compile(r"quantize\.ema_vocab_hit_SV")
"""A statistic."""
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""Of the published models at 256 px, where no option tells. At 512 px the same weights have ten others."""


def recognizes(config: Options, state: Mapping[str, Tensor]) -> bool:
    """Whether these are its levels, and convolutions follow its codes."""
    del config
    levels = {"encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight", codebook(0, 1)}
    return state.keys() >= levels and any(name.startswith("quantize.quant_resi.") for name in state)


def load_tokenizer(config: Options, state: Mapping[str, Tensor]) -> ConvolutionalTokenizer:
    """A published tokenizer with its weights, in float32 and eval mode; they may share the state's memory.

    Args:
        config: the published options, of which none is needed at 256 px: `v_patch_nums`, the sides of the scales, and
            with them the size of the image; `quant_resi`, the share of the convolutions; `using_znorm`, whether codes
            are looked up by their direction.
        state: the published parameters. All other sizes follow from their shapes.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or the option that is wrong.
    """
    state = joined_attention(state)
    own = tokenizer_config(config, state)
    with torch.device("meta"):
        tokenizer = ConvolutionalTokenizer(own)
    fill(tokenizer, state, STYLE, partial(quantizer_name, config=own), IGNORED)
    return tokenizer


def tokenizer_config(config: Options, state: Mapping[str, Tensor]) -> VqganConfig:
    """This project's config of a published tokenizer.

    Raises:
        ValueError: if a parameter is missing that sizes are read from, or an option is wrong.
    """
    encoder = encoder_of(state, STYLE)
    codes, width = shape_of(state, codebook(0, 1), 2, WHAT)
    scales = SCALES if option(config, "v_patch_nums") is None else whole_numbers(config, "v_patch_nums")
    share = option(config, "quant_resi", 0.5)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise wrong(config, "quant_resi", "a share above 0")
    return VqganConfig(
        image_size=scales[-1] * encoder.factor,
        encoder=encoder,
        decoder=decoder_of(state, STYLE),
        scales=scales,
        residual_ratio=share,
        quantizer=VectorConfig(
            codebook_size=codes,
            code_dim=width,
            lookup="cosine" if flag(config, "using_znorm", False) else "euclidean",
            initialization="uniform",
        ),
        latent_width=shape_of(state, "decoder.conv_in.weight", 4, WHAT)[1],
        quantization_kernel=kernel_of(state),
        **convolutions_of(state, 1),
    )
