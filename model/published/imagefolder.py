"""ImageFolder's multi-scale tokenizers (MSVR) as published: options, names and shapes, mapped to this project's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.tokenizers.imagefolder import ImageFolderTokenizer

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
    """A published tokenizer with its weights, in float32 and eval mode. The state's tensors are copied.

    Args:
        config: the published options. `vit`, if there, gives the number of heads in place of the named backbone.
        state: the published parameters; all sizes follow from their shapes.

    Raises:
        ValueError: naming the parameters that are unknown, missing or of another shape, or the option that is wrong.
    """
    kept = {name: tensor for name, tensor in state.items() if not IGNORED.fullmatch(name)}
    own_config = tokenizer_config(config, kept)
    with torch.device("meta"):
        tokenizer = ImageFolderTokenizer(own_config)
    expected = {name: tensor.shape for name, tensor in tokenizer.state_dict().items()}
    names = {own: published_name(own, own_config) for own in expected}
    _refuse("misses", sorted(set(names.values()) - kept.keys()))
    _refuse("has parameters that are not known", sorted(kept.keys() - set(names.values())))
    weights = {own: kept[name] for own, name in names.items()}
    wrong = [own for own, tensor in weights.items() if _core(tensor.shape) != _core(expected[own])]
    _refuse("has unexpected shapes", [f"{names[own]} {list(weights[own].shape)}" for own in wrong])
    copies = {own: tensor.to(torch.float32, copy=True).reshape(expected[own]) for own, tensor in weights.items()}
    tokenizer.load_state_dict(copies, assign=True)
    return tokenizer.eval()


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
    needed = ["encoder.model.patch_embed.proj.weight", "encoder.model.pos_embed"]
    _refuse("misses", [name for name in needed if name not in state])
    codebooks = [tensor for name, tensor in state.items() if CODEBOOK.fullmatch(name)]
    _refuse("misses", [] if codebooks else ["quantizes.0.embedding.weight"])
    scales = config.get("v_patch_nums")
    if not isinstance(scales, list | tuple):
        raise ValueError("the published tokenizer's config needs v_patch_nums, a list of sides")  # noqa: TRY004
    patch_size = state["encoder.model.patch_embed.proj.weight"].shape[-1]
    patches = math.isqrt(state["encoder.model.pos_embed"].shape[1] - 1)
    codebook_size, code_dim = codebooks[0].shape
    return ImageFolderConfig(
        image_size=patches * patch_size,
        patch_size=patch_size,
        encoder=_vit_config(config, state, "encoder"),
        decoder=_vit_config(config, state, "decoder"),
        branches=len(codebooks),
        scales=tuple(int(side) for side in scales),
        quantizer=VectorConfig(codebook_size=codebook_size, code_dim=code_dim),
        shared_residual_convs=_number(config, "share_quant_resi", 4),
        dropout_min_scales=min(_number(config, "start_drop", 3), len(scales)),
    )


def _vit_config(config: Mapping[str, object], state: Mapping[str, Tensor], side: str) -> ViTConfig:
    """Sizes from the shapes, and the number of heads, which no shape tells, from `vit`; else the named backbone."""
    vit = config.get("vit")
    if vit is None:
        return ViTConfig(backbone=str(config.get(f"{side}_model", "")), drop_path=0.1)
    if not isinstance(vit, Mapping) or f"{side}.model.blocks.0.mlp.fc1.weight" not in state:
        raise ValueError(f"the published tokenizer misses {side}.model.blocks.0.mlp.fc1.weight, or vit is no mapping")
    hidden, width = state[f"{side}.model.blocks.0.mlp.fc1.weight"].shape
    blocks = [name.split(".")[3] for name in state if name.startswith(f"{side}.model.blocks.")]
    return ViTConfig(
        width=width,
        depth=1 + max(int(block) for block in blocks),
        heads=_number(vit, "num_heads", None),
        mlp_ratio=hidden / width,
        layer_scale=1e-5 if f"{side}.model.blocks.0.ls1.gamma" in state else None,
        drop_path=0.1,
    )


def _number(options: Mapping[str, object], name: str, default: int | None) -> int:
    value = options.get(name, default)
    if not isinstance(value, int):
        raise ValueError(f"the published tokenizer's config has {name}={value!r}: needs a whole number")  # noqa: TRY004
    return value


def _core(shape: torch.Size) -> list[int]:
    """A shape without dimensions of length one, which 1x1 convolutions and batched parameters carry."""
    return [length for length in shape if length > 1]


def _refuse(what: str, names: list[str]) -> None:
    if names:
        raise ValueError(f"the published tokenizer {what}: {', '.join(names)}")
