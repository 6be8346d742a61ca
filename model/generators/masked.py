"""Masked generators: MaskGIT (arXiv 2202.04200) over the tokens of any layout, as TiTok (arXiv 2406.07550) has it.

    [class | position 0 | mask | mask | position 3 | …] ─ embedding ─ + places ─ backbone ─ head ─ tokens at the masks

In training every sample has a share of its positions masked, with the tokens of all folds: the share follows a schedule
at a random number, and which ones is a random permutation, both from the sample's seed. The loss is the cross entropy
of all tokens with smoothed labels, weighted by 1 where masked and by `unmasked_weight` elsewhere, over the sum of the
weights of the *whole step* (all micro-batches and workers): the weights follow from seeds alone, so `of_step` knows
their sum before anything is computed. What is logged of groups and folds is of masked tokens, without smoothing.

In eval mode masks follow from the seeds as in training, and nothing else is random. The loss is then of masked tokens
alone, without smoothing, and the sums are what they are on average, so that it is a mean over samples.

Shape suffixes: B batch, S samples of a step, L positions, M of these, F folds, C channels, G groups, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from model.config.masked import BertConfig, MaskedConfig, masked_share
from model.generators.base import GeneratorNetwork
from model.generators.embedding import FoldEmbedding
from model.generators.heads import build_head
from model.generators.masked_backbones import build_backbone
from model.layers.random_numbers import split_seed, uniform
from model.layout import TokenLayout
from model.losses.tokens import terms_of_groups
from model.protocols import SamplingPlan, TeacherForcing, Terms

MEAN_WEIGHT, MASKED_SHARE = "mean_weight", "masked_share_G"
"""What training is given of a step: the mean weight of its tokens, and the masked share of each group."""
_NUMBERS = 4096
"""Of evenly spaced ones, whose mean stands for the mean over all random numbers."""


class MaskedGenerator(GeneratorNetwork):
    """Predicts all tokens from those that are not masked, and the class.

    Args:
        config: of it.
        layout: any.
        forcing_width: not used: tokens are read by their ids.
    """

    config: MaskedConfig

    def __init__(self, config: MaskedConfig, layout: TokenLayout, forcing_width: int | None = None) -> None:  # noqa: ARG002
        super().__init__(config, layout)
        width = config.backbone.width
        # Behind the codes of each fold: the mask, the classes, no class.
        self.token_embed = FoldEmbedding(layout, width, extra=config.classes + 2)
        self.position_embed = nn.Parameter(torch.empty(layout.positions + 1, width))
        self.backbone = build_backbone(config.backbone)
        self.head = build_head(config.head, width, layout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: N(0, 0.02) for BERT, cut at 2 for U-ViT; the head has its own."""
        fill = nn.init.normal_ if isinstance(self.config.backbone, BertConfig) else nn.init.trunc_normal_
        for weight in (self.position_embed, self.token_embed.weight):
            fill(weight, std=0.02)
        for module in self.backbone.modules():
            if isinstance(module, nn.Linear):
                fill(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def mask_ids(self) -> tuple[int, ...]:
        """The id of each fold that means "masked"."""
        return self.layout.vocabularies

    def no_decay_parameters(self) -> set[str]:
        """Names of the parameters without weight decay: vectors, and all tables of embeddings, as published."""
        return {name for name, p in self.named_parameters() if p.ndim < 2 or "embed" in name}

    def forward(
        self, ids_BLF: Tensor, label_B: Tensor, seed_B: Tensor | None = None, row_BM: Tensor | None = None
    ) -> Tensor:
        """What the head reads of each position.

        Args:
            ids_BLF: tokens; `mask_ids` where they are masked.
            label_B: classes; `null_class` for none.
            seed_B: int64, which dropout in training follows from.
            row_BM: the positions that are asked for; None for all.

        Returns:
            `[B, L or M, C]`, in the dtype of the products.
        """
        class_BF = torch.stack([label_B + codes + 1 for codes in self.layout.vocabularies], dim=-1)
        x_BLC = self.token_embed(torch.cat((class_BF[:, None], ids_BLF), dim=1)) + self.position_embed
        x_BLC = self.backbone(x_BLC, seed_B)[:, 1:]
        if row_BM is not None:
            x_BLC = x_BLC.gather(1, row_BM[..., None].expand(-1, -1, x_BLC.shape[-1]))
        return self.backbone.read(x_BLC)

    def logits(self, ids_BLF: Tensor, label_B: Tensor, tokens_BLF: Tensor | None = None) -> list[Tensor]:
        """Logits `[B, L, V]` of each fold, float32.

        Args:
            ids_BLF: tokens; `mask_ids` where they are masked.
            label_B: classes; `null_class` for none.
            tokens_BLF: true tokens, which a head that predicts folds one after another needs.
        """
        tokens_NF = None if tokens_BLF is None else tokens_BLF.flatten(0, 1)
        logits = self.head.logits(self(ids_BLF, label_B).flatten(0, 1), tokens_NF)
        return [logits_NV.view(*ids_BLF.shape[:2], -1) for logits_NV in logits]

    def masked_positions(self, seed_B: Tensor) -> Tensor:
        """Which positions of each sample are masked, bool [B, L]."""
        order_BL = split_seed(_purpose(seed_B, 1), self.layout.positions).T.argsort(1)
        return order_BL < self._masked_counts(seed_B)[:, None]

    def masked(self, tokens_BLF: Tensor, masked_BL: Tensor) -> Tensor:
        """Tokens with the mask's id in all folds of the masked positions."""
        folds = zip(tokens_BLF.unbind(-1), self.mask_ids, strict=True)
        return torch.stack([tokens_BL.masked_fill(masked_BL, mask) for tokens_BL, mask in folds], dim=-1)

    def training_terms(
        self,
        tokens_BLF: Tensor,
        condition_B: Tensor,
        seed_B: Tensor | None,
        forcing: TeacherForcing | None = None,  # noqa: ARG002 - a Generator has it
        of_step: Mapping[str, Tensor] | None = None,
    ) -> Terms:
        """The weighted cross entropy; loss and accuracy on masked tokens, of each group and fold and of all.

        `chance` is the accuracy of one who guesses evenly.

        Raises:
            ValueError: if there are no seeds.
        """
        if seed_B is None:
            raise ValueError("generator kind masked needs seed_B, one random number per sample: masks follow from it")
        masked_BL = self.masked_positions(seed_B)
        smoothing, unmasked = (
            (self.config.label_smoothing, self.config.unmasked_weight) if self.training else (0.0, 0.0)
        )
        weight_BL = masked_BL + unmasked * ~masked_BL
        read_BLC = self(self.masked(tokens_BLF, masked_BL), condition_B, _purpose(seed_B, 2))
        of_BLC = (read_BLC.flatten(0, 1), tokens_BLF.flatten(0, 1))
        found = self.head(*of_BLC, weight_N=weight_BL.flatten(), smoothing=smoothing)
        mean_weight, share_G = self._sums(masked_BL, of_step)
        share_L1 = self._per_position(share_G)
        loss_LF, hits_LF = (
            (each_NF.float().view(tokens_BLF.shape) * masked_BL[..., None]).mean(0) / share_L1
            for each_NF in (found.losses_NF, found.hits_NF)
        )
        part_L1 = share_L1 / share_L1.sum()
        return {
            "loss": found.mean * (weight_BL.mean() / mean_weight),
            "masked_loss": (loss_LF * part_L1).sum(0).mean(),
            "accuracy": (hits_LF * part_L1).sum(0).mean(),
            "chance": torch.full_like(found.mean.detach(), _chance(self.layout)),
            **terms_of_groups(loss_LF, self.layout, hits_LF),
        }

    def of_step(self, step: int, seed_S: Tensor) -> dict[str, Tensor]:  # noqa: ARG002 - a StepTaught has it
        """The mean weight of the step's tokens, and the share of each group that is masked."""
        share_S = self._masked_counts(seed_S).double() / self.layout.positions
        alone = len(self.layout.groups) == 1
        share_G = share_S.mean()[None] if alone else self._shares(self.masked_positions(seed_S))
        return {MEAN_WEIGHT: self._mean_weight(share_S.mean()).float(), MASKED_SHARE: share_G.float()}

    def sample(self, plan: SamplingPlan, forcing: TeacherForcing | None = None) -> Tensor:  # noqa: ARG002
        """Draw all positions in a few steps (`masked_sampling.py`)."""
        from model.generators.masked_sampling import generate

        return generate(self, plan)

    def _masked_counts(self, seed_B: Tensor) -> Tensor:
        """Masked positions of each sample, at least one."""
        share_B = masked_share(self.config.mask_schedule, uniform(_purpose(seed_B, 0), 1)[0], torch)
        return (self.layout.positions * share_B).round().clamp(min=1)

    def _sums(self, masked_BL: Tensor, of_step: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The mean weight, and the masked share of each group: of the step, of these samples, or on average."""
        if of_step is not None:
            return of_step[MEAN_WEIGHT], of_step[MASKED_SHARE]
        if self.training:
            share_G = self._shares(masked_BL)
            return self._mean_weight(masked_BL.float().mean()), share_G
        share = torch.full((), self._usual_share, device=masked_BL.device)
        return share, share.expand(len(self.layout.groups))

    @cached_property
    def _usual_share(self) -> float:
        """The masked share on average over all samples."""
        shares = (masked_share(self.config.mask_schedule, (i + 0.5) / _NUMBERS) for i in range(_NUMBERS))
        counts = (max(1, round(self.layout.positions * share)) for share in shares)
        return sum(counts) / _NUMBERS / self.layout.positions

    def _mean_weight(self, share: Tensor) -> Tensor:
        return share + self.config.unmasked_weight * (1 - share)

    def _shares(self, masked_BL: Tensor) -> Tensor:
        """Of each group; no less than a single position, so that a group without a mask has a loss of zero."""
        mean_L = masked_BL.float().mean(0)
        parts = torch.split(mean_L, list(self.layout.groups))
        return torch.stack([part.mean() for part in parts]).clamp(min=1e-6)

    def _per_position(self, of_group_G: Tensor) -> Tensor:
        """[G] -> [L, 1]."""
        return torch.cat([of_group_G[i].expand(size) for i, size in enumerate(self.layout.groups)])[:, None]


def _purpose(seed_B: Tensor, number: int) -> Tensor:
    """A seed for one of the purposes: 0 how many are masked, 1 which, 2 dropout."""
    return split_seed(seed_B, number + 1)[number]


def _chance(layout: TokenLayout) -> float:
    return sum(1 / codes for codes in layout.vocabularies) / layout.folds
