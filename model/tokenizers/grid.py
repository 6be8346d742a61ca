"""What the tokenizers have in common whose latents are square grids: all between the encoder and the decoder.

Shapes: B batch, P branches, C channels of a code (of the image, in image_BCHW), H = W side, L positions, F folds (= P).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.config import GridTokenizerConfig
from model.config.quantizers import ONLY_TRAINING
from model.layers.random_numbers import split_seed
from model.layout import TokenLayout
from model.losses.perturbation import perturbed_tokens
from model.protocols import Draws, Quantizer, Terms, TokenizerOutput, Uniform
from model.quantizers.multi_scale import FoldedQuantizer, Quantized

PERTURBED, CHANCES = "perturbed", "perturbation_chances"
"""What the stage draws for a perturbation of codes: of each sample, whether it has any; of the step, how strong it is
(model/losses/perturbation.py)."""
KEPT_SCALES, KEPT_MEAN, DROPPED = "kept_scales", "kept_mean", "dropped"
"""What is drawn: of each sample, how many scales it keeps, and whether the semantic losses leave it out; of the step,
the share that keeps each scale."""


class GridTokenizer(nn.Module):
    """A subclass makes `quantizer`, and encodes and decodes; the rest of the `Tokenizer` Protocol is here.

    It also has `ENCODES`, `DECODES`, `last_layer`, `project_teacher` and `no_decay_parameters`.
    """

    NEITHER: ClassVar[tuple[str, ...]] = (
        *("quantizer_dropout", "quantizer_dropout_images", "dropout_min_scales", "commitment_over_scales"),
        *(f"quantizer.{name}" for name in ONLY_TRAINING),
    )
    """Settings that only training has."""
    quantizer: FoldedQuantizer

    def __init__(self, config: GridTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.layout: TokenLayout = config.layout

    def encode(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] -> latent before quantization, [B, P, C, H, W]; `seed_B` for random masks in training."""
        raise NotImplementedError

    def decode(self, latent_BPCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Quantized latent [B, P, C, H, W] -> images, not clamped; `seed_B` for random masks in training."""
        raise NotImplementedError

    @property
    def prefixes(self) -> tuple[int, ...]:
        """An image can be decoded after each scale."""
        return self.layout.offsets[1:]

    @property
    def codebooks(self) -> dict[str, tuple[int, int]]:
        """One for each branch, unless codes are fixed."""
        return {f"quantizer.{name}": shape for name, shape in self.quantizer.codebooks.items()}

    def draw(
        self, uniform: Uniform, positions_B: npt.NDArray[np.int64], step_positions: npt.NDArray[np.int64]
    ) -> Draws:
        """Quantizer dropout: how many scales each sample keeps, and which share of the step's samples keeps each scale.

        Each sample of a share `quantizer_dropout` keeps a number that is uniform from `dropout_min_scales` to all.
        Which samples these are is a function of the position, so they are the same at any number of workers; or, with
        `quantizer_dropout_images: first`, they are the first of each worker's batch, rounded down, as published.
        """
        scales = np.arange(len(self.config.scales))
        everyone, _ = self._kept_scales(uniform, step_positions, len(positions_B))
        kept_mean_S = (everyone[:, None] > scales).mean(0).astype(np.float32)
        kept_B, dropped_B = self._kept_scales(uniform, positions_B, len(positions_B))
        return Draws({KEPT_SCALES: kept_B, DROPPED: dropped_B}, {KEPT_MEAN: kept_mean_S})

    def _kept_scales(
        self, uniform: Uniform, positions: npt.NDArray[np.int64], local: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The number of scales of each sample, and which leave the semantic losses; `local` samples are a worker's."""
        scales, fewest, share = len(self.config.scales), self.config.dropout_min_scales, self.config.quantizer_dropout
        count = fewest + np.floor(uniform("kept_scales", positions) * (scales - fewest + 1)).astype(np.int64)
        if self.config.quantizer_dropout_images == "first":
            taken = np.arange(len(positions)) % local < int(local * share)  # workers' batches lie one after another
            return np.where(taken, count, scales), taken
        taken = uniform("quantizer_dropout", positions) < share
        return np.where(taken, count, scales), np.zeros(len(positions), dtype=np.bool_)

    def tokenize(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> token ids [B, L, F], int64."""
        return self.quantizer.tokenize(self.encode(image_BCHW))

    def detokenize(self, tokens_BLF: Tensor, keep: int | None = None) -> Tensor:
        """Tokens of the first `keep` positions (None: of all) -> images clamped to [-1, 1], float32.

        Raises:
            ValueError: if `keep` is not where a scale ends (`prefixes`).
        """
        return self.decode(self.quantizer.dequantize(tokens_BLF, keep)).float().clamp(-1, 1)

    def fold_quantizers(self) -> tuple[Quantizer, ...]:
        """Of each branch; its scales have one."""
        return tuple(self.quantizer.branch(index).quantizer for index in range(self.layout.folds))

    def pooled(self, tokens_BLF: Tensor) -> Tensor:
        """Tokens -> means over the grid of each branch's latent, the sum of all scales, [B, P, C], float32."""
        return self.quantizer.dequantize(tokens_BLF).mean((3, 4))

    def losses_of_means(self, means: Terms) -> Terms:
        """The part of the quantizer's entropy term that is of the whole global batch."""
        return self.quantizer.losses_of_means(means)

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
        sample, which random masks need. Without `decode` there is no reconstruction.
        """
        kept_scales_B, kept_mean_S = (drawn or {}).get(KEPT_SCALES), (drawn or {}).get(KEPT_MEAN)
        seeds = (None, None, None) if seed_B is None else split_seed(seed_B, 3).unbind()
        of_encoder, of_decoder, of_codes = seeds
        quantized: Quantized = self.quantizer(self.encode(image_BCHW, of_encoder), kept_scales_B, kept_mean_S)
        latent_BPCHW = decoded_BPCHW = quantized.latent_BPCHW
        if drawn and PERTURBED in drawn and decode:
            decoded_BPCHW = latent_BPCHW + self._perturbation(quantized.tokens_BLF, drawn, of_codes)
        return TokenizerOutput(
            reconstruction_BCHW=self.decode(decoded_BPCHW, of_decoder) if decode else image_BCHW[:0],
            tokens_BLF=quantized.tokens_BLF,
            losses=quantized.losses,
            branch_BPC=latent_BPCHW.mean((3, 4)),
            hits=dict(zip(self.codebooks, quantized.hits.values(), strict=True)),
            seen=dict(zip(self.codebooks, quantized.seen.values(), strict=True)),
            means=quantized.means,
        )

    @torch.no_grad()
    def _perturbation(self, tokens_BLF: Tensor, drawn: Mapping[str, Tensor], seed_B: Tensor | None) -> Tensor:
        """What near codes in place of the true ones change in the latent that is decoded; of one scale."""
        if seed_B is None:
            raise ValueError("a perturbation of codes needs seed_B, one random number per sample")
        branches = zip(tokens_BLF.unbind(2), split_seed(seed_B, tokens_BLF.shape[2]), strict=True)
        near = []
        for index, (tokens_BL, seed) in enumerate(branches):
            quantizer = self.quantizer.branch(index).quantizer
            codes_VC = quantizer.codes(torch.arange(quantizer.config.vocabulary, device=seed.device)[None])[0]
            near.append(perturbed_tokens(tokens_BL, codes_VC, seed, drawn[PERTURBED], drawn[CHANCES]))
        changed_BPCHW: Tensor = self.quantizer.dequantize(torch.stack(near, dim=2))
        return changed_BPCHW - self.quantizer.dequantize(tokens_BLF)
