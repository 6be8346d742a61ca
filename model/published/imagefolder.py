"""ImageFolder's tokenizers (MSVR, MSBR, VQ, VP2) as published: names and shapes, mapped to this project's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import (
    BinaryConfig,
    ImageFolderConfig,
    LookupFreeConfig,
    QuantizerConfig,
    SphericalConfig,
    VectorConfig,
    ViTConfig,
)
from model.published.fitting import count_of, filled, shape_of
from model.published.options import Options, option, whole_number, whole_numbers, wrong
from model.tokenizers.imagefolder import ImageFolderTokenizer

WHAT = "the published tokenizer"

IGNORED = re.compile(
    r"(encoder|decoder)\.lvl1LC"  # which level each token has: follows from the layout
    r"|quantize(s\.\d+)?\.ema_vocab_hit_SV"  # a statistic
    r"|quantize(s\.\d+)?\.scaler"  # lengths of binary codes, which the config says
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
QUANTIZER = re.compile(r"quantize(s\.\d+)?\.(embedding\.weight|scaler)")
"""What each branch has one of: the codebook of a vector quantizer, or the lengths of a binary one."""
BACKBONES = {
    384: "vit_small_patch14_dinov2.lvd142m",
    768: "vit_base_patch14_dinov2.lvd142m",
    1024: "vit_large_patch14_dinov2.lvd142m",
    1536: "vit_giant_patch14_dinov2.lvd142m",
}
"""The published backbones, by their width."""


def recognizes_msvr(_: Options, state: Mapping[str, Tensor]) -> bool:
    """Whether this is a ViT tokenizer of several scales with vector quantization."""
    return _is_vit(state) and _has(state, ".embedding.weight") and _has(state, ".quant_resi.")


def recognizes_msbr(_: Options, state: Mapping[str, Tensor]) -> bool:
    """Whether this is a ViT tokenizer of several scales with binary codes."""
    return _is_vit(state) and _has(state, ".scaler") and _has(state, ".quant_resi.")


def recognizes_vq(_: Options, state: Mapping[str, Tensor]) -> bool:
    """Whether this is a ViT tokenizer of one scale: VQ, and VP2 with two branches."""
    return _is_vit(state) and _has(state, ".embedding.weight") and not _has(state, ".quant_resi.")


def _is_vit(state: Mapping[str, Tensor]) -> bool:
    """Levels are embedded where latents share the image's table of positions (abs_pos_embed), as in all that is out."""
    return {"encoder.lvl_embed.weight", "encoder.model.pos_embed", "decoder.model.pos_embed"} <= state.keys()


def _has(state: Mapping[str, Tensor], part: str) -> bool:
    return any(part in name for name in state if name.startswith("quantize"))


def load_tokenizer(config: Options, state: Mapping[str, Tensor]) -> ImageFolderTokenizer:
    """A published tokenizer with its weights, in float32 and eval mode; they may share the state's memory.

    Args:
        config: the published options, of which several scales need `v_patch_nums`. `vit` (and `vit_decoder`), if there,
            gives the number of heads in place of the named backbone; without either it is the published one.
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


def tokenizer_config(config: Options, state: Mapping[str, Tensor]) -> ImageFolderConfig:
    """This project's config of a published tokenizer.

    Raises:
        ValueError: if an option or a parameter that sizes are read from is missing.
    """
    patch_size = shape_of(state, "encoder.model.patch_embed.proj.weight", 4, WHAT)[-1]
    patches = math.isqrt(shape_of(state, "encoder.model.pos_embed", 3, WHAT)[1] - 1)
    branches = sorted(name for name in state if QUANTIZER.fullmatch(name)) or ["quantizes.0.embedding.weight"]
    queries = shape_of(state, "encoder.latent_tokens", 3, WHAT)[1]
    scales = _scales(config, state, math.isqrt(queries // len(branches)))
    return ImageFolderConfig(
        image_size=patches * patch_size,
        patch_size=patch_size,
        encoder=_vit_config(config, state, "encoder"),
        decoder=_vit_config(config, state, "decoder"),
        branches=len(branches),
        scales=scales,
        quantizer=_quantizer(state, branches, len(scales)),
        shared_residual_convs=_shared_convs(state),
        dropout_min_scales=min(whole_number(config, "start_drop", 3), len(scales)),
    )


def _scales(config: Options, state: Mapping[str, Tensor], grid: int) -> tuple[int, ...]:
    """One scale follows from the number of queries, several are an option."""
    if not _has(state, ".quant_resi."):
        return (grid,)
    scales = whole_numbers(config, "v_patch_nums")
    if scales[-1] != grid:
        raise ValueError(f"v_patch_nums {list(scales)}: {WHAT} has queries for a grid of {grid} x {grid}")
    return scales


def _quantizer(state: Mapping[str, Tensor], names: list[str], scales: int) -> QuantizerConfig:
    """The quantizer of each branch. Codes of one scale are compared and put out at length one, not those of several."""
    if names[0].endswith("embedding.weight"):
        codebook_size, code_dim = shape_of(state, names[0], 2, WHAT)
        return VectorConfig(codebook_size=codebook_size, code_dim=code_dim, unit_codes=scales == 1)
    bits = shape_of(state, "quant_conv.bias", 1, WHAT)[0]
    first, *others = torch.cat([state[name].flatten() for name in names]).tolist()
    kinds: tuple[BinaryConfig, ...] = (LookupFreeConfig(bits=bits), SphericalConfig(bits=bits))
    fitting = [kind for kind in kinds if math.isclose(kind.length, first, rel_tol=1e-5)]
    if not fitting or any(not math.isclose(other, first, rel_tol=1e-5) for other in others):
        raise ValueError(f"{WHAT} has unexpected lengths of codes: {names[0]} {[first, *others][:4]}")
    return fitting[0]


def _shared_convs(state: Mapping[str, Tensor]) -> int:
    """Of each branch: one, some that scales share, or one for each scale (0)."""
    _, _, rest = next((name.partition(".quant_resi.") for name in state if ".quant_resi." in name), ("", "", ""))
    if rest.startswith("qresi."):
        return 1
    shared = [name.split(".qresi_ls.")[1].split(".")[0] for name in state if ".qresi_ls." in name]
    return max((int(number) + 1 for number in shared if number.isdecimal()), default=0)


def _vit_config(config: Options, state: Mapping[str, Tensor], side: str) -> ViTConfig:
    """Sizes from the shapes, and the number of heads, which no shape tells, from `vit`; else the named backbone."""
    hidden, width = shape_of(state, f"{side}.model.blocks.0.mlp.fc1.weight", 2, WHAT)
    vit = "vit_decoder" if side == "decoder" and "vit_decoder" in config else "vit"
    if vit not in config:
        backbone = option(config, f"{side}_model", BACKBONES.get(width))
        if not isinstance(backbone, str):
            raise wrong(config, f"{side}_model", "the name of a timm model")
        return ViTConfig(backbone=backbone, drop_path=0.1)
    return ViTConfig(
        width=width,
        depth=count_of(state, f"{side}.model.blocks."),
        heads=whole_number(config, f"{vit}.num_heads"),
        mlp_ratio=hidden / width,
        layer_scale=1e-5 if f"{side}.model.blocks.0.ls1.gamma" in state else None,
        drop_path=0.1,
    )
