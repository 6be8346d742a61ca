"""ImageFolder's multi-scale tokenizers (MSVR) as published: options, names and shapes, mapped to this project's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.published.fitting import count_of, filled, shape_of
from model.published.options import whole_number, whole_numbers
from model.tokenizers.imagefolder import ImageFolderTokenizer

WHAT = "the published tokenizer"

IGNORED = re.compile(
    r"(encoder|decoder)\.lvl1LC"  # which level each token has: follows from the layout
    r"|quantize(s\.\d+)?\.ema_vocab_hit_SV"  # a statistic
    r"|(semantic_model|detail_model)\..*"  # frozen teachers
    r"|sem_linear\..*"  # made for convolutional encoders, never used with these
)
NAMES = {
    "encoder.queries_QD": "encoder.latent_tokens",
    "encoder.level": "encoder.lvl_embed.weight",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.level": "decoder.lvl_embed.weight",
    "decoder.to_pixel.weight": "decoder.to_pixel.model.weight",
    "decoder.to_pixel.bias": "decoder.to_pixel.model.bias",
    "to_latent.weight": "quant_conv.weight",
    "to_latent.bias": "quant_conv.bias",
    "from_latent.weight": "post_quant_conv.weight",
    "from_latent.bias": "post_quant_conv.bias",
}
CODEBOOK = re.compile(r"quantize(s\.\d+)?\.embedding\.weight")


def recognizes(config: Mapping[str, object], state: Mapping[str, Tensor]) -> bool:
    """Whether this is a ViT tokenizer with multi-scale vector quantization (not VQ, BSQ or a convolutional one)."""
    scales = config.get("v_patch_nums")
    return (
        isinstance(scales, list | tuple)
        and len(scales) > 1
        and not config.get("lfq", False)
        and bool(config.get("abs_pos_embed", True))
        and {"encoder.model.pos_embed", "decoder.model.pos_embed"} <= state.keys()
        and any(CODEBOOK.fullmatch(name) for name in state)
    )


def load_tokenizer(config: Mapping[str, object], state: Mapping[str, Tensor]) -> ImageFolderTokenizer:
    """A published tokenizer with its weights, in float32 and eval mode; they may share the state's memory.

    Args:
        config: the published options. `vit`, if there, gives the number of heads in place of the named backbone.
        state: the published parameters; all sizes follow from their shapes.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or the option that is wrong.
    """
    own_config = tokenizer_config(config, state)
    with torch.device("meta"):
        tokenizer = ImageFolderTokenizer(own_config)
    filled(tokenizer, state, lambda own: published_name(own, own_config), IGNORED, WHAT)
    return tokenizer


def published_name(own: str, config: ImageFolderConfig) -> str:
    """The published name of one of the parameters of `ImageFolderTokenizer(config)`."""
    if own in NAMES:
        return NAMES[own]
    side, _, rest = own.partition(".trunk.")
    if rest:
        return f"{side}.model.{rest}"
    _, _, branch, module, *rest_of_name = own.split(".")
    quantizer = f"quantizes.{branch}" if config.branches > 1 else "quantize"
    if module == "quantizer":
        return f"{quantizer}.embedding.weight"
    conv, part = rest_of_name
    holder = {0: conv, 1: "qresi"}.get(config.shared_residual_convs, f"qresi_ls.{conv}")
    return f"{quantizer}.quant_resi.{holder}.{part}"


def tokenizer_config(config: Mapping[str, object], state: Mapping[str, Tensor]) -> ImageFolderConfig:
    """This project's config of a published tokenizer.

    Raises:
        ValueError: if an option or a parameter that sizes are read from is missing.
    """
    patch_size = shape_of(state, "encoder.model.patch_embed.proj.weight", 4, WHAT)[-1]
    patches = math.isqrt(shape_of(state, "encoder.model.pos_embed", 3, WHAT)[1] - 1)
    codebooks = [name for name in state if CODEBOOK.fullmatch(name)] or ["quantizes.0.embedding.weight"]
    codebook_size, code_dim = shape_of(state, codebooks[0], 2, WHAT)
    scales = whole_numbers(config, "v_patch_nums")
    return ImageFolderConfig(
        image_size=patches * patch_size,
        patch_size=patch_size,
        encoder=_vit_config(config, state, "encoder"),
        decoder=_vit_config(config, state, "decoder"),
        branches=len(codebooks),
        scales=scales,
        quantizer=VectorConfig(codebook_size=codebook_size, code_dim=code_dim),
        shared_residual_convs=whole_number(config, "share_quant_resi", 4),
        dropout_min_scales=min(whole_number(config, "start_drop", 3), len(scales)),
    )


def _vit_config(config: Mapping[str, object], state: Mapping[str, Tensor], side: str) -> ViTConfig:
    """Sizes from the shapes, and the number of heads, which no shape tells, from `vit`; else the named backbone."""
    vit = config.get("vit")
    if vit is None:
        return ViTConfig(backbone=str(config.get(f"{side}_model", "")), drop_path=0.1)
    hidden, width = shape_of(state, f"{side}.model.blocks.0.mlp.fc1.weight", 2, WHAT)
    return ViTConfig(
        width=width,
        depth=count_of(state, f"{side}.model.blocks."),
        heads=whole_number(config, "vit.num_heads"),
        mlp_ratio=hidden / width,
        layer_scale=1e-5 if f"{side}.model.blocks.0.ls1.gamma" in state else None,
        drop_path=0.1,
    )
