"""What autograd keeps between forward and backward, counted from what each layer saves.

Counted are the distinct tensors that a layer's backward needs, in bytes for one sample. "wide" is a float32 tensor,
"narrow" one of the number format of matrix products (2 bytes in bf16, and in fp16, which counts as bf16 here; else 4).
A tensor that two layers share counts once. Left out are scalars per row (statistics of LayerNorm, log-sum-exp of
attention), which are 1 to 2 %.

Symbols: C channels, L positions, V codebook size, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.config import ClassifierConfig, ImageFolderConfig, NextScaleConfig
from trainer.planning.shapes import Trunk, trunk_of

WIDE = 4
Attention = Literal["cpu", "sdpa", "flash_attn"]
"""How attention is computed: in float32 on a CPU, or by one kernel in the number format, or by flash-attn."""


@dataclass(frozen=True)
class Activations:
    """Bytes per sample."""

    blocks: int
    """Kept of all transformer blocks (of convolutions, in a network without)."""
    rest: int
    """Kept of everything else."""
    output: int
    """The largest tensor at the end: logits, or images. Forward holds two of it, the begin of backward three."""
    recomputed: int
    """Of the largest block alone, which is what checkpointing computes again at one time."""
    most_output: int | None = None
    """Bytes of `output` that are ever held of all samples together; None if there is no bound."""


def _narrow(bf16: bool) -> int:
    return 2 if bf16 else WIDE


def generator_activations(
    config: NextScaleConfig, tokenizer: ImageFolderConfig, *, bf16: bool, attention: Attention, checkpointing: bool
) -> Activations:
    """Of a training step of the generator."""
    from model.losses import LOGITS_AT_ONCE  # its module needs torch

    layout, width = tokenizer.layout, config.width
    block = layout.positions * _generator_block(config, tokenizer, bf16, attention) + 6 * width * 2 * WIDE
    narrow = _narrow(bf16)
    kept = layout.positions * width * narrow + 6 * width * 2 * WIDE if checkpointing else block
    logits = layout.positions * layout.folds * layout.vocabulary() * WIDE
    # The stream, its normalization, the gradient to what the head reads, and the input.
    head = layout.positions * (3 * width * narrow + layout.folds * tokenizer.code_dim * WIDE)
    recomputed = block if checkpointing else 0
    return Activations(config.depth * kept, head, logits, recomputed, most_output=LOGITS_AT_ONCE * WIDE)


def _generator_block(config: NextScaleConfig, tokenizer: ImageFolderConfig, bf16: bool, attention: Attention) -> int:
    """Bytes per position of one block: what LayerNorm, modulation, projections, attention and MLP save."""
    narrow, width = _narrow(bf16), config.width
    hidden = round(width * config.mlp_ratio)
    inputs = 3 * narrow  # the residual stream, its normalization, and what the condition makes of that
    qkv = 3 * narrow  # normalized queries and keys, and values: attention keeps the same
    if attention == "cpu":
        # Small heads go to the float32 kernel, which is faster there: copies of q, k, v, and its own output.
        own = 4 * WIDE + narrow if bf16 and config.width // config.heads < 64 else narrow
    elif attention == "sdpa":
        own = narrow
    else:
        ends = sum(end for end in tokenizer.layout.offsets[1:])
        repeated = ends / tokenizer.layout.positions if len(tokenizer.layout.groups) > 1 else 1.0
        own = round((1 + 2 * repeated) * narrow) + narrow
    gated = narrow
    attention_half = (inputs + qkv + own + gated) * width
    return attention_half + (inputs + gated) * width + 2 * hidden * narrow


def _trunk_block(trunk: Trunk, bf16: bool) -> int:
    """Bytes per token of one block of a timm vision transformer."""
    narrow = _narrow(bf16)
    scaled = narrow if trunk.layer_scale else 0
    attention_half = (WIDE + narrow + 3 * narrow + narrow + scaled) * trunk.width
    return attention_half + (WIDE + narrow + scaled) * trunk.width + 2 * trunk.hidden * narrow


def tokenizer_tokens(config: ImageFolderConfig) -> tuple[int, int]:
    """Length of the encoder's and of the decoder's sequence: 499 and 379 for ImageFolder's."""
    patches, cells = (config.image_size // config.patch_size) ** 2, config.grid**2
    return 1 + patches + config.branches * cells, 1 + patches + 1 + cells


def tokenizer_activations(config: ImageFolderConfig, *, bf16: bool, checkpointing: bool) -> Activations:
    """Of a training step of the tokenizer; those of a teacher that sees reconstructions are not in it."""
    size, patch = config.image_size, config.patch_size
    blocks, largest = 0, 0
    for vit, tokens in zip((config.encoder, config.decoder), tokenizer_tokens(config), strict=True):
        trunk = trunk_of(vit, size, patch)
        block = tokens * _trunk_block(trunk, bf16)
        blocks += trunk.depth * (tokens * trunk.width * WIDE if checkpointing else block)
        largest = max(largest, block)
    image = 3 * size**2 * WIDE
    latent = config.branches * config.code_dim * config.grid**2 * WIDE
    quantizer = 4 * len(config.scales) * latent  # per scale: the code's map, its mixture, and two differences
    return Activations(blocks, quantizer + 2 * image, image, largest if checkpointing else 0)


def classifier_activations(config: ClassifierConfig) -> Activations:
    """Of the convolutional classifier: input, convolution and normalization of each layer, in float32."""
    side, last, kept = config.image_size, 3, 0
    for width in config.widths:
        kept += last * side**2 * WIDE
        side = -(-side // 2)
        kept += 2 * width * side**2 * WIDE
        last = width
    return Activations(kept, 0, config.classes * WIDE, 0)
