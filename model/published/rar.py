"""RAR generators (1d-tokenizer): mapped to `RandomOrderGenerator`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import TokenizerConfig
from model.config.random_order import RandomOrderConfig
from model.generators.random_order import PREFIX, RandomOrderGenerator
from model.layout import TokenLayout
from model.published.fitting import count_of, filled, shape_of
from model.published.options import Options

IGNORED = re.compile(r"attn_mask")
"""What follows from the number of positions."""

NAMES = {
    "start": "cls_token",
    "position_embed": "pos_embed",
    "target_embed": "target_aware_pos_embed",
    "step_embed": "timesteps_embeddings",
    "final_adaln.weight": "adaln_before_head.adaLN_modulation.1.weight",
    "final_adaln.bias": "adaln_before_head.adaLN_modulation.1.bias",
    "head.weight": "lm_head.weight",
    "head.bias": "lm_head.bias",
    "token_embed.weight": "embeddings.codes",
    "class_embed.weight": "embeddings.classes",
}
"""Our names to the published ones, once the table of all ids is cut."""
BLOCK_NAMES = {
    "attention.": "attn.",
    "fc1.": "mlp.fc1.",
    "fc2.": "mlp.fc2.",
    "adaln.": "adaLN_modulation.1.",
    "norm": "norm",
}
"""What names within a block begin with."""
TABLE = "embeddings.weight"
"""Rows of the codes, of a mask that is never used, of the classes, and of no class."""
WHAT = "the published RAR generator"
TELLING = {TABLE, "target_aware_pos_embed", "timesteps_embeddings", "adaln_before_head.adaLN_modulation.1.weight"}
"""What tells RAR: nobody else has positions of targets."""


def recognizes(config: Options, state: Mapping[str, Tensor]) -> bool:
    """Whether this is a RAR generator, by the names of its parameters."""
    del config
    return state.keys() >= TELLING


def load_generator(
    config: Options, state: Mapping[str, Tensor], tokenizer_config: TokenizerConfig
) -> RandomOrderGenerator:
    """A published generator with its weights, in float32 and eval mode; they may share the state's memory.

    Args:
        config: the published options, of which none is needed: all sizes follow from shapes.
        state: the published parameters.
        tokenizer_config: of the tokenizer that made its tokens.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or what does not fit the
            tokenizer.
    """
    del config
    layout = tokenizer_config.layout
    codes, width = shape_of(state, "lm_head.weight", 2, WHAT)
    if layout.folds > 1 or codes != layout.vocabularies[0]:
        raise ValueError(f"{WHAT} predicts one of {codes} codes at a position, but the tokenizer makes {layout}")
    sizes = _generator_config(state, layout, codes, width)
    with torch.device("meta"):
        generator = RandomOrderGenerator(sizes, layout)
    table = state[TABLE]
    cut = {name: tensor for name, tensor in state.items() if name != TABLE}
    cut |= {"embeddings.codes": table[:codes], "embeddings.classes": table[codes + 1 :]}
    filled(generator, cut, published_name, IGNORED, WHAT)
    return generator


def published_name(own: str) -> str:
    """The published name of one of the parameters of a `RandomOrderGenerator`."""
    if not own.startswith("blocks."):
        return NAMES[own]
    _, index, rest = own.split(".", 2)
    ours, theirs = next(pair for pair in BLOCK_NAMES.items() if rest.startswith(pair[0]))
    return f"blocks.{index}.{theirs}{rest[len(ours) :]}"


def _generator_config(state: Mapping[str, Tensor], layout: TokenLayout, codes: int, width: int) -> RandomOrderConfig:
    """Sizes from the weights' shapes."""
    rows, _ = shape_of(state, TABLE, 2, WHAT)
    hidden, _ = shape_of(state, "blocks.0.mlp.fc1.weight", 2, WHAT)
    (channels,) = shape_of(state, "blocks.0.attn.q_norm.weight", 1, WHAT)
    tables = (shape_of(state, name, 3, WHAT)[1] for name in ("pos_embed", "timesteps_embeddings"))
    spare_positions, spare_steps = (rows - layout.positions - PREFIX for rows in tables)
    if min(spare_positions, spare_steps) < 0 or rows < codes + 3:
        raise ValueError(f"{WHAT} has tables that are too short for the tokenizer, which makes {layout}")
    return RandomOrderConfig(
        num_classes=rows - codes - 2,
        depth=count_of(state, "blocks."),
        width=width,
        heads=width // channels,
        mlp_width=hidden,
        spare_positions=spare_positions,
        spare_steps=spare_steps,
    )
