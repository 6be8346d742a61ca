"""Encoders and decoders of published VQ-GANs: all sizes from shapes, and our names of parameters to theirs.

LlamaGen, VAR and MaskGIT's port call the same parts by other names (`Style`); attention has three convolutions for
queries, keys and values in one of them and one in another, and one here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor

from model.config.convolutional import ConvolutionalDecoderConfig, ConvolutionalEncoderConfig, ConvolutionsConfig
from model.published.fitting import count_of, filled, shape_of
from model.tokenizers.vqgan import ConvolutionalTokenizer

WHAT = "the published tokenizer"
Side = Literal["encoder", "decoder"]
_PARTS = ("q", "k", "v")
_RESIDUAL = {"norm1", "conv1", "norm2", "conv2", "nin_shortcut"}
_ENDS = {"start": "conv_in", "norm": "norm_out", "end": "conv_out"}


@dataclass(frozen=True)
class Style:
    """How one code base calls the parts of an encoder and a decoder."""

    levels: dict[Side, str]
    """Lists of levels: "down"."""
    from_pixels: bool
    """Whether a decoder's levels are counted from the pixels, too, and not from the latent as here."""
    block: str
    """Lists of residual blocks within a level."""
    resampling: dict[Side, str]
    """What changes the side, within a level."""
    middle: tuple[str, str]
    """Residual block and attention in the middle, by their place among all of both, and among their own from 1."""


class Sizes(TypedDict):
    """Of an encoder or a decoder: fields of `ConvolutionsConfig`."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    middle_blocks: int
    attention_levels: int
    middle_attention: bool


def sizes_of(state: Mapping[str, Tensor], style: Style, side: Side) -> Sizes:
    """What the shapes of a state tell of its encoder or decoder.

    Raises:
        ValueError: if a parameter is missing that a width is read from, or is no convolution's.
    """
    levels = range(count_of(state, f"{side}.{style.levels[side]}."))
    names = [_level(style, side, level, len(levels)) for level in reversed(levels)]  # a decoder's, from the pixels
    names = names if side == "decoder" else names[::-1]
    middle = [name.split(".")[2:4] for name in state if re.match(rf"{side}\.mid\.\w+\.\w", name)]
    return {
        "widths": tuple(shape_of(state, f"{name}.{style.block}.0.conv1.weight", 4, WHAT)[0] for name in names),
        "blocks": tuple(count_of(state, f"{name}.{style.block}.") for name in names),
        "middle_blocks": len({module for module, part in middle if part in _RESIDUAL}),
        "attention_levels": sum(count_of(state, f"{name}.attn.") > 0 for name in names),
        "middle_attention": any(part not in _RESIDUAL for _, part in middle),
    }


def encoder_of(
    state: Mapping[str, Tensor], style: Style, like: ConvolutionalEncoderConfig | None = None
) -> ConvolutionalEncoderConfig:
    """The config of a state's encoder.

    Args:
        state: the published parameters.
        style: how its parts are called.
        like: what no shape tells; None for LlamaGen's and VAR's.

    Raises:
        ValueError: as `sizes_of`.
    """
    sizes = sizes_of(state, style, "encoder")
    start = shape_of(state, "encoder.conv_in.weight", 4, WHAT)[0]
    told = {"start_width": None if sizes["widths"][:1] == (start,) else start}
    return ConvolutionalEncoderConfig.model_validate((like.model_dump() if like else {}) | sizes | told)


def decoder_of(
    state: Mapping[str, Tensor], style: Style, like: ConvolutionalDecoderConfig | None = None
) -> ConvolutionalDecoderConfig:
    """The config of a state's decoder, as `encoder_of`."""
    sizes = sizes_of(state, style, "decoder")
    return ConvolutionalDecoderConfig.model_validate((like.model_dump() if like else {}) | sizes)


def joined_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same parameters, with those of queries, keys and values in one, as here.

    Raises:
        ValueError: if one of the three is missing, or they have different shapes; it is named.
    """
    joined = dict(state)
    for name in state:
        stem, _, kind = name.rpartition(".")
        module, _, part = stem.rpartition(".")
        if part not in _PARTS or kind not in {"weight", "bias"} or f"{module}.qkv.{kind}" in joined:
            continue
        names = [f"{module}.{each}.{kind}" for each in _PARTS]
        missing = [each for each in names if each not in state]
        if missing:
            raise ValueError(f"{WHAT} misses: {', '.join(missing)}")
        shapes = {each: list(state[each].shape) for each in names}
        if any(shape != shapes[names[0]] for shape in shapes.values()):
            told = ", ".join(f"{each} {shape}" for each, shape in shapes.items())
            raise ValueError(f"{WHAT} has unexpected shapes: {told}, which should be equal")
        joined[f"{module}.qkv.{kind}"] = torch.cat([joined.pop(each) for each in names])
    return joined


def fill(
    tokenizer: ConvolutionalTokenizer,
    state: Mapping[str, Tensor],
    style: Style,
    name_of_rest: Callable[[str], str],
    ignored: re.Pattern[str],
) -> None:
    """Give a tokenizer that was made on the meta device its published parameters, and put it in eval mode.

    Args:
        tokenizer: of the sizes that the state has.
        state: the published parameters, with attention joined.
        style: how the parts of its encoder and decoder are called.
        name_of_rest: our name of any other parameter -> its published name.
        ignored: published names that have no place in ours (matched whole).

    Raises:
        ValueError: as `fitted`.
    """

    def name_of(own: str) -> str:
        side, _, rest = own.partition(".")
        if side == "encoder":
            return _published_name("encoder", rest, style, tokenizer.config.encoder)
        if side == "decoder":
            return _published_name("decoder", rest, style, tokenizer.config.decoder)
        return name_of_rest(own)

    filled(tokenizer, state, name_of, ignored, WHAT)


def _published_name(side: Side, own: str, style: Style, config: ConvolutionsConfig) -> str:
    """The published name of a parameter of an encoder or a decoder."""
    part, _, rest = own.partition(".")
    if part == "levels":
        place, inner, tail = rest.split(".", 2)
        levels = len(config.widths)
        level = _level(style, side, int(place), levels)
        if inner == "resampling":
            return f"{level}.{style.resampling[side]}.{tail}"
        attends = config.attends(int(place) if side == "encoder" else levels - 1 - int(place))
        block, _, leaf = tail.partition(".")
        number, attention = divmod(int(block), 2) if attends else (int(block), 0)
        return f"{level}.{'attn' if attention else style.block}.{number}.{_leaf(leaf)}"
    if part == "middle":
        _, place, leaf = rest.split(".", 2)
        number, attention = divmod(int(place), 2) if config.middle_attention else (int(place), 0)
        return f"{side}.mid.{style.middle[attention].format(place=place, number=number + 1)}.{_leaf(leaf)}"
    return f"{side}.{_ENDS[part]}.{rest}"


def _level(style: Style, side: Side, number: int, levels: int) -> str:
    """The published name of a level, counted as here: an encoder's from the pixels, a decoder's from the latent."""
    if side == "decoder" and style.from_pixels:
        number = levels - 1 - number
    return f"{side}.{style.levels[side]}.{number}"


def _leaf(own: str) -> str:
    """Within a residual block or attention."""
    return own.replace("shortcut.", "nin_shortcut.").replace("proj.", "proj_out.")
