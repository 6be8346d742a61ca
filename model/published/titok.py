"""TiTok as published (bytedance/1d-tokenizer): two-stage, single-stage and with a Gaussian bottleneck, of any size.

Shapes tell all sizes, what the head gives and what is between encoder and decoder; the options are asked for the number
of heads where a transformer is of no named size, and for `use_l2_norm` where the codebook is none of the released ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from model.config import VectorConfig
from model.config.titok import SIZES, GaussianConfig, PixelDecoderConfig, TiTokConfig, TiTokViTConfig
from model.published.fitting import count_of, filled, shape_of
from model.published.options import Options, flag, option, whole_number, wrong
from model.tokenizers.titok import TiTokTokenizer

WHAT = "the published TiTok"
IGNORED = re.compile(r"quantize\.embed_prob")  # how often a clustered codebook used each code
CODEBOOK, PIXEL_CODEBOOK = "quantize.embedding.weight", "pixel_quantize.embedding.weight"
UNIT_CODES = {(4096, 12): True, (8192, 64): False}
"""Whether the released models with a codebook of this shape have latents and codes of length one."""
NAMES = {
    "encoder.latent_tokens": "latent_tokens",
    "pixel_codebook.codebook": PIXEL_CODEBOOK,
    "quantizer.quantizer.codebook": CODEBOOK,
}
_PARTS = (
    (r"^head\.(hidden|to_pixel)\.", "decoder.ffn.0."),
    (r"^head\.to_logits\.", "decoder.ffn.2."),
    (r"^head\.conv_out\.", "decoder.conv_out."),
    (r"\.image_positions$", ".positional_embedding"),
    (r"\.latent_positions$", ".latent_token_positional_embedding"),
    (r"\.norm_(pre|post)\.", r".ln_\1."),
    (r"\.patch_embedding\.", ".patch_embed."),
    (r"\.to_latent\.", ".conv_out."),
    (r"\.from_latent\.", ".decoder_embed."),
    (r"\.blocks\.", ".transformer."),
    (r"\.attn\.qkv\.(weight|bias)$", r".attn.in_proj_\1"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"(\.\d+)\.norm([12])\.", r"\1.ln_\2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
"""What is replaced in the name of one of our parameters, one after another."""
_PIXEL_PARTS = {"start.": "conv_in.", "middle.blocks.": "mid.", "norm.": "norm_out.", "end.": "conv_out."}
"""Of the pixel decoder, what is beside its levels."""


def recognizes(options: Options, state: Mapping[str, Tensor]) -> bool:  # noqa: ARG001 - an entry of the registry has it
    """Whether these are the parameters of a TiTok, with whatever head and bottleneck."""
    return {"latent_tokens", "encoder.latent_token_positional_embedding", "decoder.mask_token"} <= state.keys()


def load_tokenizer(options: Options, state: Mapping[str, Tensor]) -> TiTokTokenizer:
    """A published tokenizer with its weights, in float32 and eval mode.

    Args:
        options: the published ones; may be empty for models of the released sizes.
        state: the published parameters.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or the option that is needed.
    """
    config = tokenizer_config(options, state)
    with torch.device("meta"):
        tokenizer = TiTokTokenizer(config)
    levels = len(config.pixel_decoder.widths) if config.pixel_decoder else 0
    filled(tokenizer, state, partial(published_name, pixel_levels=levels), IGNORED, WHAT)
    return tokenizer


def published_name(own: str, pixel_levels: int = 0) -> str:
    """The published name of one of our parameters, of a model whose pixel decoder has so many levels."""
    if own in NAMES:
        return NAMES[own]
    if own.startswith("pixel_decoder."):
        return "pixel_decoder." + _pixel_name(own.removeprefix("pixel_decoder."), pixel_levels)
    for pattern, replacement in _PARTS:
        own = re.sub(pattern, replacement, own)
    return own


def tokenizer_config(options: Options, state: Mapping[str, Tensor]) -> TiTokConfig:
    """This project's config of a published tokenizer.

    Raises:
        ValueError: if a parameter that sizes are read from is missing, or an option that none tells.
    """
    latents, _ = shape_of(state, "latent_tokens", 2, WHAT)
    *_, patch_size = shape_of(state, "encoder.patch_embed.weight", 4, WHAT)
    image_size = _side(state, "encoder") * patch_size
    target = _target(state)
    decoder_side = _side(state, "decoder")
    return TiTokConfig(
        image_size=image_size,
        latents=latents,
        encoder=_vit(options, state, "encoder", patch_size),
        quantizer=_bottleneck(options, state),
        decoder=_vit(options, state, "decoder", image_size // decoder_side),
        target=target,
        latent_layout="interleaved" if flag(options, "model.vq_model.is_legacy", target != "rgb") else "correct",
        proxy_codes=1024 if target == "rgb" else shape_of(state, "decoder.ffn.2.weight", 4, WHAT)[0],
        pixel_decoder=_pixel_decoder(state) if target == "pixels" else None,
    )


def _target(state: Mapping[str, Tensor]) -> str:
    if "decoder.conv_out.weight" in state:
        return "rgb"
    return "pixels" if PIXEL_CODEBOOK in state else "codes"


def _side(state: Mapping[str, Tensor], part: str) -> int:
    """Patches at the side of the image: the position table has a row for each, and one for the class token."""
    rows, _ = shape_of(state, f"{part}.positional_embedding", 2, WHAT)
    return math.isqrt(rows - 1)


def _vit(options: Options, state: Mapping[str, Tensor], part: str, patch_size: int) -> TiTokViTConfig:
    hidden, width = shape_of(state, f"{part}.transformer.0.mlp.c_fc.weight", 2, WHAT)
    depth = count_of(state, f"{part}.transformer.")
    named = next((sizes for sizes in SIZES.values() if (sizes["width"], sizes["depth"]) == (width, depth)), None)
    key = "vit_decoder" if part == "decoder" and option(options, "vit_decoder") is not None else "vit"
    heads = whole_number(options, f"{key}.heads", None if named is None else named["heads"])
    return TiTokViTConfig(width=width, depth=depth, heads=heads, mlp_ratio=hidden / width, patch_size=patch_size)


def _bottleneck(options: Options, state: Mapping[str, Tensor]) -> VectorConfig | GaussianConfig:
    _, read = shape_of(state, "decoder.decoder_embed.weight", 2, WHAT)
    if CODEBOOK not in state and shape_of(state, "encoder.conv_out.weight", 4, WHAT)[0] == 2 * read:
        return GaussianConfig(code_dim=read)
    commitment = option(options, "model.vq_model.commitment_cost", 0.25)
    if not isinstance(commitment, int | float):
        raise wrong(options, "model.vq_model.commitment_cost", "a number")
    codes, code_dim = shape_of(state, CODEBOOK, 2, WHAT)
    return VectorConfig(
        codebook_size=codes,
        code_dim=code_dim,
        lookup="euclidean",
        unit_codes=flag(options, "model.vq_model.use_l2_norm", UNIT_CODES.get((codes, code_dim))),
        initialization="uniform",
        commitment=commitment,
    )


def _pixel_decoder(state: Mapping[str, Tensor]) -> PixelDecoderConfig:
    """Widths of each level from its first block's second convolution, which keeps the width."""
    _, code_dim = shape_of(state, PIXEL_CODEBOOK, 2, WHAT)
    levels = range(count_of(state, "pixel_decoder.up."))
    widths = [shape_of(state, f"pixel_decoder.up.{level}.block.0.conv2.weight", 4, WHAT)[0] for level in levels]
    return PixelDecoderConfig(
        code_dim=code_dim,
        widths=tuple(widths),
        blocks=tuple(count_of(state, f"pixel_decoder.up.{level}.block.") for level in levels),
        middle_blocks=count_of(state, "pixel_decoder.mid."),
    )


def _pixel_name(own: str, levels: int) -> str:
    """Of the pixel decoder: our levels count from the codes, the published ones from the pixels."""
    level, _, rest = own.removeprefix("levels.").partition(".")
    if own.startswith("levels."):
        place = f"up.{levels - 1 - int(level)}"
        if rest.startswith("resampling."):
            return f"{place}.upsample_conv.{rest.removeprefix('resampling.')}"
        return f"{place}.block.{rest.removeprefix('blocks.').replace('shortcut', 'nin_shortcut')}"
    ours = next(prefix for prefix in _PIXEL_PARTS if own.startswith(prefix))
    return _PIXEL_PARTS[ours] + own.removeprefix(ours)
