"""The networks of the toy families. Shapes as in model/protocols.py; C channels of a code, W width, K codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_families import ToyGeneratorConfig, ToyTokenizerConfig

from model.generators.choosing import draw, truncate
from model.layout import TokenLayout
from model.losses.tokens import terms_of_groups
from model.protocols import Draws, SamplingPlan, TeacherForcing, Terms, TokenizerOutput, Uniform


class ToyTokenizer(nn.Module):
    """A linear map to latents, the nearest code of each codebook, and a linear map back."""

    ENCODES: ClassVar[tuple[str, ...]] = ("encoder.", "books.")
    DECODES: ClassVar[tuple[str, ...]] = ("books.", "decoder.")
    last_layer: ClassVar[str] = "decoder.weight"

    def __init__(self, config: ToyTokenizerConfig) -> None:
        super().__init__()
        self.config, self.layout = config, config.layout
        pixels, channels = 3 * config.image_size**2, config.code_dim
        self.encoder = nn.Linear(pixels, config.latents * self.layout.folds * channels)
        self.decoder = nn.Linear(self.encoder.out_features, pixels)
        self.books = nn.ParameterList([nn.Parameter(torch.randn(k, channels)) for k in config.vocabularies])

    @property
    def prefixes(self) -> tuple[int, ...]:
        return (self.layout.positions,)

    @property
    def codebooks(self) -> dict[str, tuple[int, int]]:
        return {f"books.{fold}": (1, size) for fold, size in enumerate(self.config.vocabularies)}

    def draw(
        self, uniform: Uniform, positions_B: npt.NDArray[np.int64], step_positions: npt.NDArray[np.int64]
    ) -> Draws:
        return Draws()

    def no_decay_parameters(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.startswith("books.")}

    def _latent(self, image_BCHW: Tensor) -> Tensor:
        shape = (len(image_BCHW), self.layout.positions, self.layout.folds, self.config.code_dim)
        latent: Tensor = self.encoder(image_BCHW.flatten(1)).view(shape)
        return latent

    @torch.no_grad()
    def _choose(self, latent_BLFC: Tensor) -> Tensor:
        folds = zip(latent_BLFC.float().unbind(2), self.books, strict=True)
        chosen = [torch.cdist(latent_BLC.flatten(0, 1), book.float()).argmin(1) for latent_BLC, book in folds]
        return torch.stack(chosen, 1).view(latent_BLFC.shape[:3])

    def _codes(self, tokens_BLF: Tensor) -> Tensor:
        folds = zip(tokens_BLF.unbind(2), self.books, strict=True)
        return torch.stack([F.embedding(tokens_BL, book) for tokens_BL, book in folds], 2)

    def _image(self, codes_BLFC: Tensor) -> Tensor:
        side = self.config.image_size
        image: Tensor = self.decoder(codes_BLFC.flatten(1)).view(-1, 3, side, side)
        return image

    def tokenize(self, image_BCHW: Tensor) -> Tensor:
        return self._choose(self._latent(image_BCHW))

    def detokenize(self, tokens_BLF: Tensor, keep: int | None = None) -> Tensor:
        assert keep in {None, self.layout.positions}
        return self._image(self._codes(tokens_BLF)).float().clamp(-1, 1)

    def forward(
        self, image_BCHW: Tensor, drawn: Mapping[str, Tensor], seed_B: Tensor | None = None, *, decode: bool = True
    ) -> TokenizerOutput:
        latent_BLFC = self._latent(image_BCHW)
        tokens_BLF = self._choose(latent_BLFC)
        codes_BLFC = self._codes(tokens_BLF)
        losses = {
            "codebook": F.mse_loss(codes_BLFC, latent_BLFC.detach()),
            "commitment": 0.25 * F.mse_loss(latent_BLFC, codes_BLFC.detach()),
        }
        straight_BLFC = latent_BLFC + (codes_BLFC - latent_BLFC).detach()
        hits = {
            name: torch.zeros(shape, dtype=torch.int64, device=tokens_BL.device).scatter_add_(
                1, tokens_BL.reshape(1, -1), torch.ones_like(tokens_BL).reshape(1, -1)
            )
            for (name, shape), tokens_BL in zip(self.codebooks.items(), tokens_BLF.unbind(2), strict=True)
        }
        seen_BCHW = self._image(straight_BLFC) if decode else image_BCHW[:0]
        seen = {
            name: latent_BLC.detach().float().flatten(0, 1)
            for name, latent_BLC in zip(self.codebooks, latent_BLFC.unbind(2), strict=True)
        }
        return TokenizerOutput(seen_BCHW, tokens_BLF, losses, None, hits, seen, {})

    def losses_of_means(self, means: Terms) -> Terms:
        return {}

    def project_teacher(self, feature_BD: Tensor) -> Tensor:
        raise ValueError("a toy is compared with no teacher")


class ToyGenerator(nn.Module):
    """The sum of the embedded ids of all positions before, then one linear head per fold."""

    def __init__(self, config: ToyGeneratorConfig, layout: TokenLayout, forcing_width: int | None) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        self.condition = nn.Embedding(config.classes + 1, config.width)
        self.place = nn.Embedding(layout.positions, config.width)
        self.ids = nn.ModuleList([nn.Embedding(size, config.width) for size in layout.vocabularies])
        self.heads = nn.ModuleList([nn.Linear(config.width, size) for size in layout.vocabularies])

    @property
    def null_class(self) -> int:
        return self.config.classes

    def no_decay_parameters(self) -> set[str]:
        return set()

    def forward(self, tokens_BLF: Tensor, condition_B: Tensor) -> list[Tensor]:
        """Logits [B, L, K] of each fold."""
        embedded_BLW = torch.stack([ids(t) for ids, t in zip(self.ids, tokens_BLF.unbind(2), strict=True)]).sum(0)
        before_BLW = embedded_BLW.cumsum(1) - embedded_BLW
        places = torch.arange(tokens_BLF.shape[1], device=tokens_BLF.device)
        state_BLW = torch.tanh(before_BLW + self.condition(condition_B)[:, None] + self.place(places))
        return [head(state_BLW) for head in self.heads]

    def training_terms(
        self, tokens_BLF: Tensor, condition_B: Tensor, seed_B: Tensor | None, forcing: TeacherForcing | None
    ) -> Terms:
        folds = zip(self(tokens_BLF, condition_B), tokens_BLF.unbind(2), strict=True)
        losses = [
            F.cross_entropy(logits.flatten(0, 1).float(), t.flatten(), reduction="none").view(t.shape)
            for logits, t in folds
        ]
        loss_LF = torch.stack(losses, 2).mean(0)
        return {"loss": loss_LF.mean()} | terms_of_groups(loss_LF.detach(), self.layout)

    @torch.no_grad()
    def sample(self, plan: SamplingPlan, forcing: TeacherForcing | None) -> Tensor:
        tokens_BLF = torch.zeros(plan.uniform_BLF.shape, dtype=torch.int64, device=plan.condition_B.device)
        for position in range(self.layout.positions):
            for fold, logits_BLK in enumerate(self(tokens_BLF, plan.condition_B)):
                likely_BK = truncate(logits_BLK[:, position].float(), plan.top_k, plan.top_p)
                tokens_BLF[:, position, fold] = draw(likely_BK, plan.uniform_BLF[:, position, fold])
        return tokens_BLF
