"""VAR generators, folded as ImageFolder publishes them or with one token a position: mapped to `FoldedGenerator`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import NextScaleConfig, TokenizerConfig
from model.generators.next_scale import FoldedGenerator
from model.layout import TokenLayout
from model.published.fitting import count_of, filled, shape_of
from model.published.options import Options, option, whole_number, whole_numbers

IGNORED = re.compile(r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias")
"""Buffers that follow from the layout."""

NAMES = {
    "class_embed.weight": "class_emb.weight",
    "start_embed": "pos_start",
    "position_embed": "pos_1LC",
    "level_embed": "lvl_embed.weight",
    "input.weight": "word_embed.weight",
    "input.bias": "word_embed.bias",
    "shared_adaln.weight": "shared_ada_lin.1.weight",
    "shared_adaln.bias": "shared_ada_lin.1.bias",
    "head_adaln.weight": "head_nm.ada_lin.1.weight",
    "head_adaln.bias": "head_nm.ada_lin.1.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
"""Our names to the published ones."""
BLOCK_NAMES = {
    "adaln.weight": "ada_lin.1.weight",
    "adaln.bias": "ada_lin.1.bias",
    "adaln_offset": "ada_gss",
    "attention.qkv.weight": "attn.mat_qkv.weight",
    "attention.q_bias": "attn.q_bias",
    "attention.v_bias": "attn.v_bias",
    "attention.log_temperature": "attn.scale_mul_1H11",
    "attention.proj.weight": "attn.proj.weight",
    "attention.proj.bias": "attn.proj.bias",
    "fc1.weight": "ffn.fc1.weight",
    "fc1.bias": "ffn.fc1.bias",
    "fc2.weight": "ffn.fc2.weight",
    "fc2.bias": "ffn.fc2.bias",
}
"""The same within a block."""
WHAT = "the published generator"
TELLING = {"class_emb.weight", "word_embed.weight", "head.weight", "head_nm.ada_lin.1.weight", "pos_1LC", "pos_start"}
"""What tells a VAR generator: its start, its positions, and a head with a modulation of its own."""


def recognizes(config: Options, state: Mapping[str, Tensor]) -> bool:
    """Whether this is a VAR generator, by the names of its parameters."""
    del config
    return state.keys() >= TELLING


def load_generator(config: Options, state: Mapping[str, Tensor], tokenizer_config: TokenizerConfig) -> FoldedGenerator:
    """A published generator with its weights, in float32 and eval mode; they may share the state's memory.

    Args:
        config: the published options. `num_heads` is read where queries and keys are not normalised, since no shape
            tells it then; `patch_nums` and `folds` have to agree with the tokenizer, if they are there.
        state: the published parameters. All other sizes follow from their shapes.
        tokenizer_config: of the tokenizer that made its tokens.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or what does not fit the
            tokenizer.
    """
    width = tokenizer_config.forcing_width
    if width is None:
        raise ValueError(f"{WHAT} needs multi-scale sums, and tokenizers of kind {tokenizer_config.kind} give none")
    layout = tokenizer_config.layout
    _check_layout(config, state, layout, width)
    with torch.device("meta"):
        generator = FoldedGenerator(_generator_config(config, state), layout, width)
    filled(generator, state, published_name, IGNORED, WHAT)
    return generator


def published_name(own: str) -> str:
    """The published name of one of the parameters of a `FoldedGenerator`."""
    if own.startswith("blocks."):
        _, index, rest = own.split(".", 2)
        return f"blocks.{index}.{BLOCK_NAMES[rest]}"
    return NAMES[own]


def _check_layout(config: Options, state: Mapping[str, Tensor], layout: TokenLayout, width: int) -> None:
    """Refuse options and weights that do not fit the tokenizer."""
    (outputs, _), (_, channels) = (shape_of(state, name, 2, WHAT) for name in ("head.weight", "word_embed.weight"))
    if outputs != sum(layout.vocabularies) or channels != width:
        raise ValueError(
            f"{WHAT} has a head of {outputs} outputs and an input of {channels} channels, but the tokenizer makes "
            f"{layout.folds} folds of {layout.vocabularies[0]} codes and sums of {width} channels"
        )
    sides = whole_numbers(config, "patch_nums") if option(config, "patch_nums") is not None else None
    folds = whole_number(config, "folds", layout.folds)
    if folds != layout.folds or (sides is not None and tuple(side**2 for side in sides) != layout.groups):
        raise ValueError(f"{WHAT} predicts patch_nums {sides} in {folds} folds, but the tokenizer makes {layout}")


def _generator_config(config: Options, state: Mapping[str, Tensor]) -> NextScaleConfig:
    """Sizes from the weights' shapes; the number of heads, which no shape tells without q/k norm, from the config."""
    temperature = state.get("blocks.0.attn.scale_mul_1H11")
    rows, width = shape_of(state, "class_emb.weight", 2, WHAT)
    hidden, _ = shape_of(state, "blocks.0.ffn.fc1.weight", 2, WHAT)
    return NextScaleConfig(
        num_classes=rows - 1,
        depth=count_of(state, "blocks."),
        width=width,
        heads=whole_number(config, "num_heads") if temperature is None else temperature.numel(),
        mlp_ratio=hidden / width,
        shared_adaln="shared_ada_lin.1.weight" in state,
        qk_norm=temperature is not None,
    )
