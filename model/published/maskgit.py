"""Masked generators of TiTok (bytedance/1d-tokenizer), with BERT's or U-ViT's backbone: mapped to `MaskedGenerator`.

Shapes tell all sizes but the number of heads, which the options give where the width is not a released one. BERT's
queries, keys and values become one matrix, and its type of tokens, of which only the first is used, joins the places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import TokenizerConfig
from model.config.masked import BertConfig, MaskedConfig, UViTConfig
from model.generators.masked import MaskedGenerator
from model.layout import TokenLayout
from model.published.fitting import count_of, filled, shape_of
from model.published.options import Options, whole_number

WHAT = "the published masked generator"
HEADS = {768: 16, 1024: 16}
"""Attention heads of the released models, by their width."""
QKV = ("query", "key", "value")
_TYPES, _PLACES = "model.embeddings.token_type_embeddings.weight", "model.embeddings.position_embeddings.weight"

BERT_NAMES = (
    (r"^head\.", "model.lm_head."),
    (r"^token_embed\.", "model.embeddings.word_embeddings."),
    (r"^position_embed$", _PLACES),
    (r"^backbone\.norm\.", "model.embeddings.LayerNorm."),
    (r"^backbone\.blocks\.", "model.encoder.layer."),
    (r"\.qkv\.", ".attention.self.query, key, value."),
    (r"\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".attention.output.LayerNorm."),
    (r"\.fc1\.", ".intermediate.dense."),
    (r"\.fc2\.", ".output.dense."),
    (r"(\d)\.norm2\.", r"\1.output.LayerNorm."),
)
"""What is replaced in the name of one of our parameters, one after another."""
UVIT_NAMES = (
    (r"^head\.", "lm_head."),
    (r"^token_embed\.", "embeddings."),
    (r"^position_embed$", "pos_embed"),
    (r"^backbone\.norm\.", "norm."),
    (r"\.(qkv|proj)\.", r".attn.\1."),
    (r"\.(fc1|fc2)\.", r".mlp.\1."),
    (r"\.skip\.", ".skip_linear."),
)


def recognizes_bert(options: Options, state: Mapping[str, Tensor]) -> bool:  # noqa: ARG001 - an entry of the registry has it
    """Whether these are the parameters of a masked generator with BERT's backbone."""
    return {"model.lm_head.weight", "model.embeddings.word_embeddings.weight", _PLACES} <= state.keys()


def recognizes_uvit(options: Options, state: Mapping[str, Tensor]) -> bool:  # noqa: ARG001 - an entry of the registry has it
    """Whether these are the parameters of a masked generator with U-ViT's backbone."""
    return {"embeddings.weight", "pos_embed", "mid_block.attn.qkv.weight", "lm_head.weight"} <= state.keys()


def load_bert(options: Options, state: Mapping[str, Tensor], tokenizer_config: TokenizerConfig) -> MaskedGenerator:
    """A published generator with BERT's backbone and its weights, in float32 and eval mode.

    Args:
        options: the published ones. The number of heads is read where the width is not a released one, and dropout.
        state: the published parameters.
        tokenizer_config: of the tokenizer that made its tokens.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or what does not fit the
            tokenizer.
    """
    table, head = "model.embeddings.word_embeddings.weight", "model.lm_head.weight"
    width, depth = shape_of(state, table, 2, WHAT)[1], count_of(state, "model.encoder.layer.")
    hidden, _ = shape_of(state, "model.encoder.layer.0.intermediate.dense.weight", 2, WHAT)
    backbone = BertConfig(depth=depth, width=width, heads=_heads(options, width), mlp_ratio=hidden / width)
    joined = _joined(state, depth, width)
    generator = _blank(joined, table, head, _PLACES, backbone, tokenizer_config.layout)
    filled(generator, joined, bert_name, re.compile(r"model\.embeddings\.position_ids"), WHAT)
    return generator


def load_uvit(options: Options, state: Mapping[str, Tensor], tokenizer_config: TokenizerConfig) -> MaskedGenerator:
    """The same with U-ViT's backbone, whose published dropout is never used.

    Raises:
        ValueError: as `load_bert`.
    """
    width = shape_of(state, "embeddings.weight", 2, WHAT)[1]
    hidden, _ = shape_of(state, "mid_block.mlp.fc1.weight", 2, WHAT)
    half = count_of(state, "in_blocks.")
    sizes = {"depth": 2 * half, "width": width, "mlp_ratio": hidden / width}
    backbone = UViTConfig(heads=_heads(options, width), **sizes)
    generator = _blank(state, "embeddings.weight", "lm_head.weight", "pos_embed", backbone, tokenizer_config.layout)
    filled(generator, state, lambda own: uvit_name(own, half), re.compile(r"(?!)"), WHAT)
    return generator


def bert_name(own: str) -> str:
    """The published name of one of our parameters; of what is joined, all of them."""
    for pattern, replacement in BERT_NAMES:
        own = re.sub(pattern, replacement, own)
    return own


def uvit_name(own: str, half: int) -> str:
    """The published name of one of our parameters, of a model with so many blocks before the middle one."""
    for pattern, replacement in UVIT_NAMES:
        own = re.sub(pattern, replacement, own)
    if not own.startswith("backbone.blocks."):
        return own
    index, _, rest = own.removeprefix("backbone.blocks.").partition(".")
    number = int(index)
    if number == half:
        return f"mid_block.{rest}"
    return f"in_blocks.{number}.{rest}" if number < half else f"out_blocks.{number - half - 1}.{rest}"


def _heads(options: Options, width: int) -> int:
    return whole_number(options, "model.generator.num_attention_heads", HEADS.get(width))


def _blank(
    state: Mapping[str, Tensor],
    table: str,
    head: str,
    places: str,
    backbone: BertConfig | UViTConfig,
    layout: TokenLayout,
) -> MaskedGenerator:
    """The network on the meta device, once its sizes are found to be those of the tokenizer."""
    (rows, _), (codes, _) = shape_of(state, table, 2, WHAT), shape_of(state, head, 2, WHAT)
    positions = state[places].shape[-2] - 1
    if layout.folds != 1 or (positions, codes) != (layout.positions, layout.vocabularies[0]):
        raise ValueError(f"{WHAT} predicts {positions} tokens of {codes} codes, but the tokenizer makes {layout}")
    if rows < codes + 3:
        raise ValueError(f"{WHAT} has unexpected shapes: {table} has {rows} rows for {codes} codes, a mask and classes")
    with torch.device("meta"):
        return MaskedGenerator(MaskedConfig(num_classes=rows - codes - 2, backbone=backbone), layout)


def _joined(state: Mapping[str, Tensor], depth: int, width: int) -> dict[str, Tensor]:
    """The parameters with queries, keys and values of each layer in one, and the first type of tokens in the places.

    Raises:
        ValueError: naming those that are missing, or of another shape.
    """
    joined, problems = dict(state), []
    for layer in range(depth):
        for kind, shape in (("weight", (width, width)), ("bias", (width,))):
            prefix = f"model.encoder.layer.{layer}.attention.self."
            names = [f"{prefix}{part}.{kind}" for part in QKV]
            found = [joined.pop(name, None) for name in names]
            wrong = [name for name, each in zip(names, found, strict=True) if each is None or each.shape != shape]
            problems += wrong
            if not wrong:
                joined[f"{prefix}query, key, value.{kind}"] = torch.cat([each for each in found if each is not None])
    types, places = joined.pop(_TYPES, None), state[_PLACES]
    if types is None or types.ndim != 2 or types.shape[-1] != places.shape[-1]:
        problems.append(_TYPES)
    else:
        joined[_PLACES] = places + types[0]
    if problems:
        raise ValueError(f"{WHAT} misses, or has with unexpected shapes: {', '.join(problems[:20])}")
    return joined
