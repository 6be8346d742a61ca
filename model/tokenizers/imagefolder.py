"""ImageFolder's tokenizer: images to folded tokens and back (arXiv 2410.01756).

Shapes: B batch, P branches, C channels of a code (of the image, in image_BCHW), H = W side, L positions, F folds (= P),
D width of a transformer or of the teacher's features, K latent positions of one branch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor, nn

from model.config import ImageFolderConfig
from model.layers.random_numbers import split_seed
from model.layers.vit import ImageDecoder, ImageEncoder
from model.layout import TokenLayout
from model.protocols import Draws, TokenizerOutput, Uniform
from model.quantizers.multi_scale import FoldedQuantizer, Quantized

KEPT_SCALES, KEPT_MEAN = "kept_scales", "kept_mean"
"""What is drawn: of each sample, how many scales it keeps; of the step, the share that keeps each scale."""
_NOT_DECAYED = re.compile(r"pos_embed|codebook|queries|level|token")


class ImageFolderTokenizer(nn.Module):
    """Encoder, one multi-scale quantizer per branch, decoder."""

    ENCODES: ClassVar[tuple[str, ...]] = ("encoder.", "to_latent.", "quantizer.")
    DECODES: ClassVar[tuple[str, ...]] = ("quantizer.", "from_latent.", "decoder.")
    NEITHER: ClassVar[tuple[str, ...]] = (
        *("teacher_projection.", "teacher_width", "encoder.drop_path", "decoder.drop_path"),
        *("quantizer_dropout", "dropout_min_scales", "quantizer.commitment", "commitment_over_scales"),
    )
    """Parameters and settings that only training has."""

    def __init__(self, config: ImageFolderConfig) -> None:
        super().__init__()
        self.config = config
        self.layout: TokenLayout = config.layout
        grid, size, patch = config.grid, config.image_size, config.patch_size
        self.encoder = ImageEncoder(config.encoder, size, patch, grid, config.branches)
        self.decoder = ImageDecoder(config.decoder, size, patch, grid)
        self.to_latent = nn.Linear(self.encoder.width, config.quantizer.width)
        self.from_latent = nn.Linear(config.branches * config.quantizer.width, self.decoder.width)
        self.quantizer = FoldedQuantizer(config)
        wide = config.teacher_width
        self.teacher_projection = None if wide is None else nn.Linear(wide, config.quantizer.width)

    @property
    def prefixes(self) -> tuple[int, ...]:
        """An image can be decoded after each scale."""
        return self.layout.offsets[1:]

    @property
    def codebooks(self) -> dict[str, tuple[int, int]]:
        """One for each branch."""
        shape = (len(self.config.scales), self.config.quantizer.vocabulary)
        return {f"quantizer.branches.{branch}.quantizer.codebook": shape for branch in range(self.config.branches)}

    def no_decay_parameters(self) -> set[str]:
        """Names of the parameters without weight decay: codes, and tables of positions, levels and queries."""
        return {name for name, _ in self.named_parameters() if _NOT_DECAYED.search(name)}

    def draw(
        self, uniform: Uniform, positions_B: npt.NDArray[np.int64], step_positions: npt.NDArray[np.int64]
    ) -> Draws:
        """Quantizer dropout: how many scales each sample keeps, and which share of the step's samples keeps each scale.

        A share `quantizer_dropout` of samples keeps a number that is uniform from `dropout_min_scales` to all. It is a
        function of the position, so the same images are affected at any number of workers (specs of ImageFolder, 1.6,
        fix the first images of each worker's batch instead).
        """
        scales = np.arange(len(self.config.scales))
        everyone = self._kept_scales(uniform, step_positions)
        kept_mean_S = (everyone[:, None] > scales).mean(0).astype(np.float32)
        return Draws({KEPT_SCALES: self._kept_scales(uniform, positions_B)}, {KEPT_MEAN: kept_mean_S})

    def _kept_scales(self, uniform: Uniform, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        scales, fewest = len(self.config.scales), self.config.dropout_min_scales
        dropped = uniform("quantizer_dropout", positions) < self.config.quantizer_dropout
        count = fewest + np.floor(uniform("kept_scales", positions) * (scales - fewest + 1)).astype(np.int64)
        return np.where(dropped, count, scales)

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

    def tokenize(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> token ids [B, L, F], int64."""
        return self.quantizer.tokenize(self.encode(image_BCHW))

    def decode(self, latent_BPCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Quantized latent [B, P, C, H, W] -> images, not clamped; stochastic depth in training needs seeds."""
        latent_BKC = rearrange(latent_BPCHW, "b p c h w -> b (h w) (p c)")
        image_BCHW: Tensor = self.decoder(self.from_latent(latent_BKC.to(self.from_latent.weight.dtype)), seed_B)
        return image_BCHW

    def detokenize(self, tokens_BLF: Tensor, keep: int | None = None) -> Tensor:
        """Tokens of the first `keep` positions (None: of all) -> images clamped to [-1, 1], float32.

        Raises:
            ValueError: if `keep` is not where a scale ends (`prefixes`).
        """
        if keep is not None and keep not in self.prefixes:
            raise ValueError(f"keep {keep}: scales end at {', '.join(map(str, self.prefixes))}")
        return self.decode(self.quantizer.dequantize(tokens_BLF, keep)).float().clamp(-1, 1)

    def forward(
        self,
        image_BCHW: Tensor,
        drawn: Mapping[str, Tensor] | None = None,
        seed_B: Tensor | None = None,
        *,
        decode: bool = True,
    ) -> TokenizerOutput:
        """One training pass.

        `drawn` is what `draw` gave; without it every sample keeps all scales. `seed_B`, int64, is a random number per
        sample, which stochastic depth needs. Without `decode` there is no reconstruction.
        """
        kept_scales_B, kept_mean_S = (drawn or {}).get(KEPT_SCALES), (drawn or {}).get(KEPT_MEAN)
        of_encoder, of_decoder = (None, None) if seed_B is None else split_seed(seed_B, 2).unbind()
        quantized: Quantized = self.quantizer(self.encode(image_BCHW, of_encoder), kept_scales_B, kept_mean_S)
        latent_BPCHW = quantized.latent_BPCHW
        seen_BCHW = self.decode(latent_BPCHW, of_decoder) if decode else image_BCHW[:0]
        losses = {"codebook": quantized.codebook_loss, "commitment": quantized.commitment_loss}
        hits = dict(zip(self.codebooks, quantized.hits_PSV, strict=True))
        return TokenizerOutput(seen_BCHW, quantized.tokens_BLF, losses, latent_BPCHW[:, -1].mean((2, 3)), hits)

    def project_teacher(self, feature_BD: Tensor) -> Tensor:
        """The frozen teacher's features -> [B, C], to be compared with `semantic_BC`; gradients reach the projection.

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
