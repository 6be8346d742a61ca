"""Folded VAR generators as ImageFolder publishes them: their names and shapes, mapped to `FoldedGenerator`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import ImageFolderConfig, NextScaleConfig
from model.generators.next_scale import FoldedGenerator
from model.layout import TokenLayout

IGNORED = re.compile(r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias")
"""Buffers that follow from the layout."""

NAMES = {
    "class_emb.weight": "class_embed.weight",
    "pos_start": "start_embed",
    "pos_1LC": "position_embed",
    "lvl_embed.weight": "level_embed",
    "word_embed.weight": "input.weight",
    "word_embed.bias": "input.bias",
    "shared_ada_lin.1.weight": "shared_adaln.weight",
    "shared_ada_lin.1.bias": "shared_adaln.bias",
    "head_nm.ada_lin.1.weight": "head_adaln.weight",
    "head_nm.ada_lin.1.bias": "head_adaln.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
BLOCK_NAMES = {
    "ada_lin.1.weight": "adaln.weight",
    "ada_lin.1.bias": "adaln.bias",
    "ada_gss": "adaln_offset",
    "attn.mat_qkv.weight": "attention.qkv.weight",
    "attn.q_bias": "attention.q_bias",
    "attn.v_bias": "attention.v_bias",
    "attn.scale_mul_1H11": "attention.log_temperature",
    "attn.proj.weight": "attention.proj.weight",
    "attn.proj.bias": "attention.proj.bias",
    "ffn.fc1.weight": "fc1.weight",
    "ffn.fc1.bias": "fc1.bias",
    "ffn.fc2.weight": "fc2.weight",
    "ffn.fc2.bias": "fc2.bias",
}


def load_generator(
    config: Mapping[str, object], state: Mapping[str, Tensor], tokenizer_config: ImageFolderConfig
) -> FoldedGenerator:
    """A published generator with its weights, in eval mode.

    Args:
        config: the published options; `patch_nums`, `num_heads` and, if more than one branch, `folds` are read.
        state: the published parameters. All other sizes follow from their shapes.
        tokenizer_config: of the tokenizer that made its tokens.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or what does not fit the
            tokenizer.
    """
    weights = {
        name: tensor for published, tensor in state.items() if (name := _own_name(published, tensor)) is not None
    }
    needed = {own: name for name, own in NAMES.items() if not name.startswith("shared_")}
    _refuse("misses", [published for own, published in needed.items() if own not in weights])
    layout = _layout(config, weights, tokenizer_config)
    with torch.device("meta"):
        generator = FoldedGenerator(_generator_config(config, weights), layout, tokenizer_config.forcing_width)
    generator.load_state_dict(_fitted(weights, generator), assign=True)
    return generator.requires_grad_().eval()


def _own_name(published: str, tensor: Tensor) -> str | None:
    """This project's name of a published parameter; None for buffers that are not needed."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", published)
    if block and block[2] in BLOCK_NAMES:
        return f"blocks.{block[1]}.{BLOCK_NAMES[block[2]]}"
    if published in NAMES:
        return NAMES[published]
    if IGNORED.fullmatch(published):
        return None
    raise ValueError(f"unknown parameter {published} {list(tensor.shape)} in the published generator")


def _published_name(own: str) -> str:
    """The inverse of `_own_name`, for messages."""
    if own.startswith("blocks."):
        _, index, rest = own.split(".", 2)
        return f"blocks.{index}." + next(name for name, value in BLOCK_NAMES.items() if value == rest)
    return next(name for name, value in NAMES.items() if value == own)


def _layout(
    config: Mapping[str, object], weights: Mapping[str, Tensor], tokenizer_config: ImageFolderConfig
) -> TokenLayout:
    """Scales and branches of the published options, checked against the tokenizer and the weights."""
    sides, folds = config.get("patch_nums"), config.get("folds", 1)
    if not isinstance(sides, list | tuple) or not isinstance(folds, int):
        raise ValueError("the generator's config needs patch_nums, a list of sides, and folds, a number")  # noqa: TRY004
    outputs, channels = len(weights["head.weight"]), weights["input.weight"].shape[1]
    if folds < 1 or outputs % folds or channels != folds * tokenizer_config.quantizer.width:
        raise ValueError(
            f"{folds} folds do not fit a head of {outputs} outputs and an input of {channels} channels "
            f"with codes of {tokenizer_config.quantizer.width}"
        )
    layout = TokenLayout(tuple(int(side) ** 2 for side in sides), (outputs // folds,) * folds)
    if layout != tokenizer_config.layout:
        raise ValueError(f"the generator predicts {layout}, but the tokenizer makes {tokenizer_config.layout}")
    return layout


def _generator_config(config: Mapping[str, object], weights: Mapping[str, Tensor]) -> NextScaleConfig:
    """Sizes from the weights' shapes; the number of heads, which no shape tells without q/k norm, from the config."""
    temperature = weights.get("blocks.0.attention.log_temperature")
    heads = config.get("num_heads") if temperature is None else temperature.numel()
    hidden = weights.get("blocks.0.fc1.weight")
    if hidden is None or not isinstance(heads, int):
        raise ValueError("the published generator misses blocks.0.ffn.fc1.weight, or its config num_heads")
    rows, width = weights["class_embed.weight"].shape
    return NextScaleConfig(
        num_classes=rows - 1,
        depth=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        width=width,
        heads=heads,
        mlp_ratio=len(hidden) / width,
        shared_adaln="shared_adaln.weight" in weights,
        qk_norm=temperature is not None,
    )


def _fitted(weights: Mapping[str, Tensor], generator: FoldedGenerator) -> dict[str, Tensor]:
    """The weights in float32 and without the published dimensions of length one."""
    expected = {name: tensor.shape for name, tensor in generator.state_dict().items()}
    _refuse("misses", [_published_name(name) for name in sorted(expected.keys() - weights.keys())])
    _refuse("has no place for", [_published_name(name) for name in sorted(weights.keys() - expected.keys())])
    wrong = [
        f"{_published_name(name)} {list(tensor.shape)}, which should hold {list(expected[name])}"
        for name, tensor in weights.items()
        if [n for n in tensor.shape if n > 1] != [n for n in expected[name] if n > 1]
    ]
    _refuse("has other shapes:", wrong)
    return {name: tensor.float().reshape(expected[name]).contiguous() for name, tensor in weights.items()}


def _refuse(what: str, names: list[str]) -> None:
    if names:
        raise ValueError(f"the published generator {what} {', '.join(names)}")
