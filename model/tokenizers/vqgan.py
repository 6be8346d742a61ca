"""Convolutional tokenizers: VQ-GAN (arXiv 2012.09841) as LlamaGen and VAR have it, of any size and quantizer.

    image -> encoder -> convolution -> latent, split into branches -> quantizer -> convolution -> decoder -> image

Shapes: B batch, P branches, C channels of a code (of the image, in image_BCHW), H = W side.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.config.convolutional import ConvolutionalConfig
from model.layers.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.grid import GridTokenizer


class ConvolutionalTokenizer(GridTokenizer):
    """Convolutions from pixels to a grid of latents and back.

    With several branches, each quantizes its share of the encoder's channels, side by side. Product quantization of
    convolutional latents is an option of ours: nothing in the network pulls the branches apart, and ImageFolder's
    maintainers found that it does not disentangle. Only losses can tell the branches their parts.
    """

    ENCODES: ClassVar[tuple[str, ...]] = ("encoder.", "to_latent.", "quantizer.")
    DECODES: ClassVar[tuple[str, ...]] = ("quantizer.", "from_latent.", "decoder.")
    NEITHER: ClassVar[tuple[str, ...]] = (*GridTokenizer.NEITHER, "teacher_projection.", "teacher_width")
    """Parameters and settings that only training has."""
    last_layer: ClassVar[str] = "decoder.end.weight"
    config: ConvolutionalConfig

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__(config)
        codes, kernel = config.branches * config.quantizer.width, config.quantization_kernel
        inner = config.latent_width if kernel else codes
        self.encoder = ConvolutionalEncoder(config.encoder, inner)
        self.decoder = ConvolutionalDecoder(config.decoder, inner)
        self.to_latent, self.from_latent = (
            nn.Conv2d(*widths, kernel, padding=kernel // 2) if kernel else nn.Identity()
            for widths in ((inner, codes), (codes, inner))
        )

        self.quantizer = FoldedQuantizer(config)
        wide = config.teacher_width
        self.teacher_projection = None if wide is None else nn.Linear(wide, config.quantizer.width)

    def no_decay_parameters(self) -> set[str]:
        """Names of the parameters without weight decay: the codes."""
        return set(self.codebooks)

    def encode(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] -> latent before quantization, [B, P, C, H, W]. Nothing in it is random.

        Raises:
            ValueError: if the images are not of the tokenizer's size.
        """
        del seed_B
        size, padded = self.config.image_size, self.config.padded_size
        if image_BCHW.shape[1:] != (3, size, size):
            raise ValueError(f"image of shape {list(image_BCHW.shape[1:])}: this tokenizer takes [3, {size}, {size}]")
        if padded > size:
            before = (padded - size) // 2
            around = (before, padded - size - before)
            image_BCHW = F.pad(image_BCHW, (*around, *around), mode="replicate")
        latent_BCHW: Tensor = self.to_latent(self.encoder(self._pixels_in(image_BCHW)))
        return rearrange(latent_BCHW, "b (p c) h w -> b p c h w", p=self.config.branches)

    def decode(self, latent_BPCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Quantized latent [B, P, C, H, W] -> images, not clamped. Nothing in it is random."""
        del seed_B
        latent_BCHW = latent_BPCHW.flatten(1, 2).to(self.decoder.start.weight.dtype)
        image_BCHW = self._pixels_out(self.decoder(self.from_latent(latent_BCHW)))
        size, padded = self.config.image_size, self.config.padded_size
        before = (padded - size) // 2
        return image_BCHW[:, :, before : before + size, before : before + size]

    def project_teacher(self, feature_BD: Tensor) -> Tensor:
        """The frozen teacher's features -> [B, C], compared with one of `branch_BPC`; gradients reach the projection.

        Raises:
            ValueError: if the features' width is not the one that the config promises.
        """
        projection, width = self.teacher_projection, feature_BD.shape[-1]
        takes = "none" if projection is None else projection.in_features
        if projection is None or takes != width:
            raise ValueError(
                f"the teacher's features are {width} wide and the tokenizer takes {takes}: "
                f"set tokenizer.model.teacher_width to {width}"
            )
        projected: Tensor = projection(feature_BD.to(projection.weight.dtype))
        return projected.float()

    def _pixels_in(self, image_BCHW: Tensor) -> Tensor:
        """[-1, 1] -> what the encoder takes."""
        return image_BCHW

    def _pixels_out(self, image_BCHW: Tensor) -> Tensor:
        """What the decoder makes -> [-1, 1]."""
        return image_BCHW
