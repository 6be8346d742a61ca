"""MaskGIT's VQ-GAN (arXiv 2202.04200): the teacher of TiTok, its pixel decoder, and the tokenizer of RAR.

Shapes: B batch, C channels, H = W side, K = H * W cells row by row, V codes.
"""

from __future__ import annotations

from torch import Tensor

from model.tokenizers.vqgan import ConvolutionalTokenizer


class MaskgitVqganTokenizer(ConvolutionalTokenizer):
    """A convolutional tokenizer that sees and makes pixels in [0, 1].

    What TiTok uses of it:

        proxy codes     `tokenize(image)[..., 0]`, [B, K], of the frozen whole in float32 (stage 1's targets)
        its decoder     `decode_codes(mixed)`: the pixel decoder alone, on codes or mixtures of codes [B, C, H, W]
        its codebook    `codebook`, [V, C]: TiTok's decoder predicts which code each cell has, and mixes them softly,
                        `softmax(logits_BKV) @ codebook`, before the pixel decoder; both are trained on in stage 2

    TiTok can copy them by name: `decoder.` and what follows, and `quantizer.branches.0.quantizer.codebook`.
    """

    @property
    def codebook(self) -> Tensor:
        """The codes of the first branch, [V, C]."""
        return self.get_parameter("quantizer.branches.0.quantizer.codebook")

    def decode_codes(self, latent_BCHW: Tensor) -> Tensor:
        """Codes, or mixtures of codes -> images in [0, 1], not clamped."""
        image_BCHW: Tensor = self.decoder(self.from_latent(latent_BCHW))
        return image_BCHW

    def _pixels_in(self, image_BCHW: Tensor) -> Tensor:
        return (image_BCHW + 1) / 2

    def _pixels_out(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW * 2 - 1
