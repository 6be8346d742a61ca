"""ImageFolder's tokenizer: images to folded tokens and back (arXiv 2410.01756).

Shapes: B batch, P branches, C channels of a code (of the image, in image_BCHW), H = W side, L positions, F folds (= P),
D width of a transformer or of the teacher's features, K latent positions of one branch.
"""

from __future__ import annotations

import re
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from model.config import ImageFolderConfig
from model.layers.vit import ImageDecoder, ImageEncoder
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.grid import GridTokenizer

_NOT_DECAYED = re.compile(r"pos_embed|codebook|queries|level|token")


class ImageFolderTokenizer(GridTokenizer):
    """Encoder, one multi-scale quantizer per branch, decoder."""

    ENCODES: ClassVar[tuple[str, ...]] = ("encoder.", "to_latent.", "quantizer.")
    DECODES: ClassVar[tuple[str, ...]] = ("quantizer.", "from_latent.", "decoder.")
    NEITHER: ClassVar[tuple[str, ...]] = (
        *GridTokenizer.NEITHER,
        *("teacher_projection.", "teacher_width", "encoder.drop_path", "decoder.drop_path"),
        *("encoder.initial_std", "decoder.initial_std"),
    )
    """Parameters and settings that only training has."""
    last_layer: ClassVar[str] = "decoder.to_pixel.weight"
    config: ImageFolderConfig

    def __init__(self, config: ImageFolderConfig) -> None:
        super().__init__(config)
        grid, size, patch = config.grid, config.image_size, config.patch_size
        self.encoder = ImageEncoder(config.encoder, size, patch, grid, config.branches)
        self.decoder = ImageDecoder(config.decoder, size, patch, grid)
        self.to_latent = nn.Linear(self.encoder.width, config.quantizer.width)
        self.from_latent = nn.Linear(config.branches * config.quantizer.width, self.decoder.width)
        self.quantizer = FoldedQuantizer(config)
        wide = config.teacher_width
        self.teacher_projection = None if wide is None else nn.Linear(wide, config.quantizer.width)

    def no_decay_parameters(self) -> set[str]:
        """Names of the parameters without weight decay: codes, and tables of positions, levels and queries."""
        return {name for name, _ in self.named_parameters() if _NOT_DECAYED.search(name)}

    def encode(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] -> latent before quantization, [B, P, C, H, W].

        Stochastic depth in training needs seeds (`random_numbers.py`).

        Raises:
            ValueError: if the images are not of the tokenizer's size.
        """
        size = self.config.image_size
        if image_BCHW.shape[1:] != (3, size, size):
            raise ValueError(f"image of shape {list(image_BCHW.shape[1:])}: this tokenizer takes [3, {size}, {size}]")
        latent_BQC: Tensor = self.to_latent(self.encoder(image_BCHW, seed_B))
        branches, grid = self.config.branches, self.config.grid
        return rearrange(latent_BQC, "b (p h w) c -> b p c h w", p=branches, h=grid)

    def decode(self, latent_BPCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Quantized latent [B, P, C, H, W] -> images, not clamped; stochastic depth in training needs seeds."""
        latent_BKC = rearrange(latent_BPCHW, "b p c h w -> b (h w) (p c)")
        image_BCHW: Tensor = self.decoder(self.from_latent(latent_BKC.to(self.from_latent.weight.dtype)), seed_B)
        return image_BCHW

    def project_teacher(self, feature_BD: Tensor) -> Tensor:
        """The frozen teacher's features -> [B, C], compared with one of `branch_BPC`; gradients reach the projection.

        As published, this is the projection that the encoder's own features go through. A teacher of another width has
        one of its own (`teacher_width`).

        Raises:
            ValueError: if the features' width is not the one that the config promises.
        """
        projection = self.to_latent if self.teacher_projection is None else self.teacher_projection
        if feature_BD.shape[-1] != projection.in_features:
            raise ValueError(
                f"the teacher's features are {feature_BD.shape[-1]} wide and the tokenizer takes "
                f"{projection.in_features}: set tokenizer.model.teacher_width to {feature_BD.shape[-1]}"
            )
        projected: Tensor = projection(feature_BD.to(projection.weight.dtype))
        return projected.to(torch.float32)
