"""Floating point operations of one sample in training: matrix products and convolutions, from layout and config.

A multiplication and its addition are two operations. Backward costs twice the forward pass, once for the gradient of
the weight and once for that of the input, and once where there is no gradient to one of them (pixels, tokens, frozen
weights). Norms, softmax, activations, interpolation, pooling and the optimizer are not counted: they are no matrix
products, and a few percent.

Attention is counted in two ways. `exact` counts the pairs that see each other: a position of a scale sees all scales up
to its own. `dense` counts all L x L pairs, which is what attention with a mask computes. The two differ for the
generator, and not for the tokenizer. MFU uses `exact`: what is computed in vain is no use.
What is computed twice is counted once: blocks that are checkpointed, and encoder and quantizer of the tokenizer, which
go ahead of a step of several micro-batches if there is a semantic loss (trainer/stages/contrast.py).

Symbols: C channels, L positions, V codebook size, F folds, N images of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ClassifierConfig, ImageFolderConfig, NextScaleConfig
from model.layout import TokenLayout
from trainer.planning.activations import tokenizer_tokens
from trainer.planning.shapes import Trunk, trunk_of


@dataclass(frozen=True)
class Flops:
    """Operations of one sample."""

    forward: int
    """Forward pass of what is trained, without attention's products of queries, keys and values."""
    backward: int
    """Its backward pass."""
    attention_exact: int
    """Attention, forward and backward, of the pairs that see each other."""
    attention_dense: int
    """Attention, forward and backward, of all pairs."""
    frozen: int = 0
    """Networks and parts that are only run: a teacher, the quantizer's search."""
    blocks: int = 0
    """Forward pass of the transformer blocks, attention included: what checkpointing computes again."""

    @property
    def exact(self) -> int:
        """Everything, with exact attention: the model's operations."""
        return self.forward + self.backward + self.attention_exact + self.frozen

    @property
    def dense(self) -> int:
        """Everything, with dense attention."""
        return self.forward + self.backward + self.attention_dense + self.frozen

    def plus_frozen(self, operations: int) -> Flops:
        """With more operations of frozen networks."""
        return Flops(
            self.forward,
            self.backward,
            self.attention_exact,
            self.attention_dense,
            self.frozen + operations,
            self.blocks,
        )


def visible_pairs(layout: TokenLayout) -> int:
    """Pairs of a position and one that it sees: next-scale prediction is causal by scale."""
    return sum(size * end for size, end in zip(layout.groups, layout.offsets[1:], strict=True))


def _phi(config: ImageFolderConfig) -> int:
    """One 3x3 convolution of the quantizer on the latent grid."""
    return 2 * 9 * config.code_dim**2 * config.grid**2


def generator_flops(config: NextScaleConfig, tokenizer: ImageFolderConfig) -> Flops:
    """Of a training step of the generator: the transformer, and the quantizer that makes its input from tokens."""
    layout, width = tokenizer.layout, config.width
    positions, hidden = layout.positions, round(width * config.mlp_ratio)
    block = 2 * positions * (3 * width * width + width * width + 2 * width * hidden)
    adaln = 2 * 6 * width * width * (1 if config.shared_adaln else config.depth)
    head = 2 * positions * width * layout.folds * layout.vocabulary() + 2 * 2 * width * width
    trained = config.depth * block + adaln + head
    rest = positions - layout.groups[0]
    entry = 2 * rest * layout.folds * tokenizer.code_dim * width
    exact, dense = (4 * pairs * width for pairs in (visible_pairs(layout), positions**2))
    return Flops(
        forward=trained + entry,
        backward=2 * trained + entry,  # no gradient to the input
        attention_exact=3 * config.depth * exact,
        attention_dense=3 * config.depth * dense,
        frozen=(len(layout.groups) - 1) * layout.folds * _phi(tokenizer),
        blocks=config.depth * (block + exact),
    )


def _trunk_flops(trunk: Trunk, tokens: int) -> tuple[int, int]:
    """Forward pass of all blocks: projections, and attention."""
    block = 2 * tokens * (4 * trunk.width**2 + 2 * trunk.width * trunk.hidden)
    return trunk.depth * block, trunk.depth * 4 * tokens**2 * trunk.width


def tokenizer_flops(config: ImageFolderConfig, contrastive_images: int = 0) -> Flops:
    """Of a training step of the tokenizer, without its teacher.

    Args:
        config: of the tokenizer.
        contrastive_images: N, if the semantic loss is on. Every rank computes all N x N products, which counts once.
    """
    size, patch, dim = config.image_size, config.patch_size, config.code_dim
    encoder, decoder = (trunk_of(vit, size, patch) for vit in (config.encoder, config.decoder))
    patches, cells = (size // patch) ** 2, config.grid**2
    pairs = zip((encoder, decoder), tokenizer_tokens(config), strict=True)
    (enc, enc_attention), (dec, dec_attention) = (_trunk_flops(trunk, tokens) for trunk, tokens in pairs)
    pixels = 2 * patches * 3 * patch**2
    latents = 2 * config.branches * cells * dim * (encoder.width + decoder.width)
    phi = len(config.scales) * config.branches * _phi(config)
    trained = enc + dec + pixels * decoder.width + latents + phi
    search = 2 * config.branches * config.layout.positions * dim * config.codebook_size
    semantic = 0
    if contrastive_images:
        semantic = 2 * (config.teacher_width or encoder.width) * dim  # the teacher's projection
        trained += 2 * contrastive_images * dim  # all pairs of images, counted once
    attention = 3 * (enc_attention + dec_attention)
    entry = pixels * encoder.width + semantic  # no gradient to pixels and to the teacher's features
    return Flops(
        forward=trained + entry,
        backward=2 * trained + entry,
        attention_exact=attention,
        attention_dense=attention,
        frozen=search,
        blocks=enc + dec + enc_attention + dec_attention,
    )


def classifier_forward(config: ClassifierConfig) -> tuple[int, int]:
    """Forward pass of the convolutional classifier's features: of its first layer, and of the others."""
    side, last, layers = config.image_size, 3, []
    for width in config.widths:
        side = -(-side // 2)
        layers.append(2 * 9 * last * width * side**2)
        last = width
    return layers[0], sum(layers[1:])
