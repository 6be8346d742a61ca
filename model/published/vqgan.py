"""LlamaGen's tokenizers, and ImageFolder's (XQ-GAN) with convolutions: names and shapes, mapped to this project's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from model.config import VectorConfig, VqganConfig
from model.published.convolutions import WHAT, Style, decoder_of, encoder_of, fill, joined_attention
from model.published.fitting import count_of, shape_of
from model.published.options import Options, flag, option, whole_number, whole_numbers
from model.tokenizers.vqgan import ConvolutionalTokenizer

STYLE = Style(
    levels={"encoder": "conv_blocks", "decoder": "conv_blocks"},
    from_pixels=False,
    block="res",
    resampling={"encoder": "downsample.conv", "decoder": "upsample.conv"},
    middle=("{place}", "{place}"),
)
IGNORED = re.compile(
    r"quantize(s\.\d+)?\.(codebook_used|ema_vocab_hit_SV)"  # statistics
    r"|(semantic_model|detail_model)\..*"  # frozen teachers
    r"|sem_linear\..*"  # projects a teacher's features in training
)
SIZE = 256
"""Side of the images that the published weights were trained with, where no option tells: they fit any."""


def recognizes(config: Options, state: Mapping[str, Tensor]) -> bool:
    """Whether these are its levels, and it has a codebook."""
    del config
    levels = {"encoder.conv_blocks.0.res.0.conv1.weight", "decoder.conv_blocks.0.res.0.conv1.weight"}
    return state.keys() >= levels and not state.keys().isdisjoint({codebook(0, 1), codebook(0, 2)})


def load_tokenizer(config: Options, state: Mapping[str, Tensor]) -> ConvolutionalTokenizer:
    """A published tokenizer with its weights, in float32 and eval mode; they may share the state's memory.

    Args:
        config: the published options, of which none is needed for LlamaGen's. `v_patch_nums` tells the scales, and with
            them the size of the image; `codebook_l2_norm` whether codes are looked up and put out at length one.
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
    """This project's config of a published tokenizer, whose attention is joined.

    Raises:
        ValueError: if a parameter is missing that sizes are read from, or an option is wrong.
    """
    encoder = encoder_of(state, STYLE)
    branches = count_of(state, "quantizes.") or 1
    codes, width = shape_of(state, codebook(0, branches), 2, WHAT)
    given = option(config, "v_patch_nums") is not None
    side = None if given else whole_number(config, "image_size", SIZE) // encoder.factor
    scales = whole_numbers(config, "v_patch_nums") if side is None else (side,)
    one = len(scales) == 1
    return VqganConfig(
        image_size=scales[-1] * encoder.factor,
        encoder=encoder,
        decoder=decoder_of(state, STYLE),
        branches=branches,
        scales=scales,
        quantizer=VectorConfig(
            codebook_size=codes,
            code_dim=width,
            lookup="cosine" if not one or flag(config, "codebook_l2_norm", True) else "euclidean",
            unit_codes=one and flag(config, "codebook_l2_norm", True),
        ),
        latent_width=shape_of(state, "decoder.conv_in.weight", 4, WHAT)[1],
        quantization_kernel=kernel_of(state),
        **convolutions_of(state, branches),
    )


def codebook(branch: int, branches: int) -> str:
    """The published name of a branch's codebook."""
    return f"{_quantizer(branch, branches)}.embedding.weight"


def kernel_of(state: Mapping[str, Tensor]) -> int:
    """Side of the convolutions around the quantizer."""
    return shape_of(state, "quant_conv.weight", 4, WHAT)[-1]


def convolutions_of(state: Mapping[str, Tensor], branches: int) -> dict[str, int]:
    """How many convolutions follow a branch's codes, by their published names: 0 for one for each scale."""
    stem = f"{_quantizer(0, branches)}.quant_resi"
    shared = count_of(state, f"{stem}.qresi_ls.")
    single = f"{stem}.qresi.weight" in state
    return {"shared_residual_convs": shared or int(single)}


def quantizer_name(own: str, config: VqganConfig) -> str:
    """The published name of a parameter of the quantizer, or of a convolution beside it."""
    part, _, rest = own.partition(".")
    if part in {"to_latent", "from_latent"}:
        return f"{'quant_conv' if part == 'to_latent' else 'post_quant_conv'}.{rest}"
    _, _, branch, module, *tail = own.split(".")
    stem = _quantizer(int(branch), config.branches)
    if module == "quantizer":
        return f"{stem}.embedding.weight"
    conv, leaf = tail
    holder = {0: conv, 1: "qresi"}.get(config.shared_residual_convs, f"qresi_ls.{conv}")
    return f"{stem}.quant_resi.{holder}.{leaf}"


def _quantizer(branch: int, branches: int) -> str:
    return f"quantizes.{branch}" if branches > 1 else "quantize"
