"""LlamaGen's class-conditional generators: mapped to `NextTokenGenerator`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import NextTokenConfig, TokenizerConfig
from model.generators.next_token import NextTokenGenerator
from model.published.fitting import count_of, filled, shape_of
from model.published.options import Options, option, whole_number

IGNORED = re.compile(r"freqs_cis|.*\.kv_cache\.(k|v)_cache")
"""What follows from the sizes, and what sampling left behind."""
NAMES = {
    "class_embed.weight": "cls_embedding.embedding_table.weight",
    "token_embed.weight": "tok_embeddings.weight",
    "norm.weight": "norm.weight",
    "head.weight": "output.weight",
}
"""Our names to the published ones."""
BLOCK_NAMES = {
    "norm1.weight": "attention_norm.weight",
    "norm2.weight": "ffn_norm.weight",
    "attention.qkv.weight": "attention.wqkv.weight",
    "attention.proj.weight": "attention.wo.weight",
    "fc1.weight": "feed_forward.w1, w3.weight",
    "fc2.weight": "feed_forward.w2.weight",
}
"""The same within a block; the gate and what it gates are one matrix of ours."""
HEAD_DIMS = {3200: 100, 4096: 128}
"""Channels of a head, by the width of the released models, where they are not 64."""
WHAT = "the published LlamaGen generator"
TELLING = {"cls_embedding.embedding_table.weight", "tok_embeddings.weight", "output.weight", "norm.weight"}
"""What tells LlamaGen: a table of classes beside that of tokens, and the names of Llama."""


def recognizes(options: Options, state: Mapping[str, Tensor]) -> bool:  # noqa: ARG001 - an entry of the registry has it
    """Whether this is a LlamaGen generator of classes, by the names of its parameters."""
    return state.keys() >= TELLING


def load_generator(
    options: Options, state: Mapping[str, Tensor], tokenizer_config: TokenizerConfig
) -> NextTokenGenerator:
    """A published generator with its weights, in float32 and eval mode; they may share the state's memory.

    Args:
        options: the published ones. `n_head` is read where the width is not a released one, which no shape tells;
            `block_size` has to agree with the tokenizer, if it is there, and rates of dropout are taken over.
        state: the published parameters. All other sizes follow from their shapes.
        tokenizer_config: of the tokenizer that made its tokens.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or what does not fit the
            tokenizer.
    """
    layout = tokenizer_config.layout
    codes, width = shape_of(state, "tok_embeddings.weight", 2, WHAT)
    length = whole_number(options, "block_size", layout.positions)
    if layout.vocabularies != (codes,) or layout.positions != length:
        raise ValueError(f"{WHAT} predicts {length} tokens of {codes} codes, but the tokenizer makes {layout}")
    config = _generator_config(options, state, width)
    config.check_layout(layout, None)
    with torch.device("meta"):
        generator = NextTokenGenerator(config, layout)
    filled(generator, _joined(state, config.depth), published_name, IGNORED, WHAT)
    return generator


def published_name(own: str) -> str:
    """The published name of one of the parameters of a `NextTokenGenerator`."""
    if own.startswith("blocks."):
        _, index, rest = own.split(".", 2)
        return f"layers.{index}.{BLOCK_NAMES[rest]}"
    return NAMES[own]


def _joined(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The parameters, with both input matrices of each MLP as one."""
    joined = dict(state)
    for block in range(depth):
        gate, value = (f"layers.{block}.feed_forward.{part}.weight" for part in ("w1", "w3"))
        if gate in joined and value in joined:
            name = f"layers.{block}.{BLOCK_NAMES['fc1.weight']}"
            joined[name] = torch.cat((joined.pop(gate), joined.pop(value)))
    return joined


def _generator_config(options: Options, state: Mapping[str, Tensor], width: int) -> NextTokenConfig:
    """Sizes from the weights' shapes; the number of heads, which no shape tells, by width or from the options."""
    rows, _ = shape_of(state, "cls_embedding.embedding_table.weight", 2, WHAT)
    hidden, _ = shape_of(state, "layers.0.feed_forward.w1.weight", 2, WHAT)
    released = width // HEAD_DIMS.get(width, 64) if width in _RELEASED else None
    drop_path = _rate(options, "drop_path_rate", 0.0)
    return NextTokenConfig(
        num_classes=rows - 1,
        depth=count_of(state, "layers."),
        width=width,
        heads=whole_number(options, "n_head", released),
        mlp_width=hidden,
        dropout=0.0 if drop_path else _rate(options, "resid_dropout_p", 0.1),
        token_dropout=_rate(options, "token_dropout_p", 0.1),
        drop_path=drop_path,
        label_dropout=_rate(options, "class_dropout_prob", 0.1),
    )


_RELEASED = (768, 1024, 1280, 1536, 2048, 2560, 3200, 4096)


def _rate(options: Options, name: str, default: float) -> float:
    value = option(options, name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"the published options have {name}={value!r}, which should be a number")
    return float(value)
