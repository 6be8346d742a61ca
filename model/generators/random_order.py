"""RAR (arXiv 2411.00776): a causal transformer that predicts positions in any order, as it is told where the next is.

    slot      0        1                2                  3             …
    token     (start)  class            t of position p1   t of p2       …
    position  +        +                + that of p1       + that of p2  …       where a token stands
    target             + that of p1     + that of p2       + that of p3  …       where the next one belongs
    predicts           t of p1          t of p2            t of p3       …

Every block is modulated by the class and the number of the slot. p1, p2, … is in training an order of each sample's own
or, for a share of the samples that grows over training, the one order in which images are drawn.

Shape suffixes: B batch, L positions, M positions whose tokens are given, S slots (M + 2), F folds, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config.random_order import RandomOrderConfig
from model.generators.base import GeneratorNetwork
from model.generators.embedding import FoldEmbedding
from model.generators.heads import build_head
from model.generators.scans import random_orders, scan_order
from model.layers.dropout import dropped_gelu, dropped_sum
from model.layers.dropped_attention import DroppedSelfAttention
from model.layers.linear import Linear, linear
from model.layers.modulation import NORM_EPS, modulated_affine_norm
from model.layers.precision import compute_dtype
from model.layers.random_numbers import split_seed, uniform
from model.layers.self_attention import LayerCache
from model.layers.visibility import GroupCausal
from model.layout import TokenLayout
from model.losses.tokens import TokenLosses, terms_of_groups
from model.protocols import SamplingPlan, TeacherForcing, Terms

PREFIX = 2
"""Slots before the first token: the start and the class."""
SHARE = "random_share"
"""Of the samples of a step that have an order of their own: what training is told of it, and a metric."""
_PURPOSES = 2
"""Seeds before those of blocks: whether an order is random, and which."""
_DROPOUTS = 4
"""Seeds of a block: attention between positions, what attention gives, the MLP's hidden channels, what it gives."""


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm that class and slot scale, shift and gate."""

    def __init__(self, config: RandomOrderConfig) -> None:
        super().__init__()
        width = config.width
        self.dropout, self.attention_dropout = config.dropout, config.attention_dropout
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(2))
        self.attention = DroppedSelfAttention(width, config.heads, qk_norm=True, norm_eps=NORM_EPS)
        self.fc1, self.fc2 = Linear(width, config.hidden), Linear(config.hidden, width)
        self.adaln = Linear(width, 6 * width)

    def modulation(self, condition_BSC: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale (with 1 added) and gate of attention, then of the MLP, each [B, S, C]."""
        shift, scale, gate = self.adaln.bias.view(2, 3, -1).unbind(1)
        bias = torch.stack((shift, scale + 1, gate), dim=1).flatten()
        return linear(condition_BSC, self.adaln.weight, bias).chunk(6, dim=-1)

    def forward(
        self,
        x_BSC: Tensor,
        modulation: tuple[Tensor, ...] | Tensor,
        groups: GroupCausal | None,
        cache: LayerCache | None = None,
        seeds_NB: Tensor | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x_BSC: the residual stream, float32.
            modulation: as the method gives, or the condition that it follows from.
            groups: who sees whom.
            cache: of earlier slots, in sampling.
            seeds_NB: a random number per sample for each dropout, in training.
        """
        parts = self.modulation(modulation) if isinstance(modulation, Tensor) else modulation
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        dtype = compute_dtype(self.fc1.weight)
        of_attention, of_heads, of_hidden, of_mlp = [None] * _DROPOUTS if seeds_NB is None else seeds_NB.unbind()
        normed_BSC = _normed(x_BSC, self.norm1, scale1, shift1, dtype)
        rate = self.attention_dropout if self.training else 0.0
        mixed_BSC = self.attention(normed_BSC, groups, cache=cache, seed_B=of_attention, rate=rate)
        x_BSC = self._sum(x_BSC, gate1, mixed_BSC, of_heads)
        hidden = self._activated(self.fc1(_normed(x_BSC, self.norm2, scale2, shift2, dtype)), of_hidden)
        return self._sum(x_BSC, gate2, self.fc2(hidden), of_mlp)

    def _sum(self, x_BSC: Tensor, gate_BSC: Tensor, branch_BSC: Tensor, seed_B: Tensor | None) -> Tensor:
        if self.training and self.dropout:
            return dropped_sum(x_BSC, branch_BSC, seed_B, self.dropout, gate_BSC)
        return x_BSC + gate_BSC * branch_BSC

    def _activated(self, hidden: Tensor, seed_B: Tensor | None) -> Tensor:
        return dropped_gelu(hidden, seed_B, self.dropout) if self.training and self.dropout else F.gelu(hidden)


def _normed(x_BSC: Tensor, norm: nn.LayerNorm, scale_BSC: Tensor, shift_BSC: Tensor, dtype: torch.dtype) -> Tensor:
    return modulated_affine_norm(x_BSC, norm.weight, norm.bias, scale_BSC, shift_BSC, dtype, norm.eps)


class RandomOrderGenerator(GeneratorNetwork):
    """Predicts the F tokens of a position from the class and the positions before it in an order.

    The residual stream is float32; everything else follows autocast or the weights' dtype.

    Args:
        config: sizes of the transformer.
        layout: of the tokens, whatever it is.
        forcing_width: of the tokenizer's sums, which are of no use here.
    """

    config: RandomOrderConfig

    def __init__(self, config: RandomOrderConfig, layout: TokenLayout, forcing_width: int | None = None) -> None:  # noqa: ARG002
        super().__init__(config, layout)
        width, slots = config.width, layout.positions + PREFIX
        self.token_embed = FoldEmbedding(layout, width)
        self.class_embed = nn.Embedding(config.classes + 1, width)
        self.start = nn.Parameter(torch.empty(1, width))
        self.position_embed = nn.Parameter(torch.empty(slots + config.spare_positions, width))
        self.target_embed = nn.Parameter(torch.empty(slots + config.spare_positions, width))
        self.step_embed = nn.Parameter(torch.empty(slots + config.spare_steps, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_adaln = Linear(width, 2 * width)
        self.head = build_head(config.head, width, layout)
        order = torch.tensor(scan_order(config.scan, layout.positions), device="cpu")
        self.register_buffer("scan_L", order, persistent=False)
        self.scan_L: Tensor
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: trunc-normal, but for modulations and the start, which begin at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        tables = (self.position_embed, self.target_embed, self.step_embed, self.token_embed.weight, self.head.weight)
        for table in tables:
            nn.init.trunc_normal_(table, std=0.02)
        for weight in (self.start, self.final_adaln.weight, *(block.adaln.weight for block in self._blocks())):
            nn.init.zeros_(weight)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def no_decay_parameters(self) -> set[str]:
        """Vectors and tables; of the modulations that of the head alone, as published."""
        return {
            name for name, p in self.named_parameters() if p.ndim < 2 or "embed" in name or name == "final_adaln.weight"
        }

    # ------------------------------------------------------------------------------------------------------ training

    def of_step(self, step: int, seed_S: Tensor) -> dict[str, Tensor]:  # noqa: ARG002 - a `StepTaught` has it
        """The share of the samples of a step that have an order of their own."""
        return {SHARE: torch.tensor(self.config.random_share(step))}

    def training_terms(
        self,
        tokens_BLF: Tensor,
        condition_B: Tensor,
        seed_B: Tensor | None,
        forcing: TeacherForcing | None = None,  # noqa: ARG002 - ids are all that it reads
        of_step: Mapping[str, Tensor] | None = None,
    ) -> Terms:
        """Mean cross-entropy of all tokens, that of each group and fold, and the share of random orders.

        In eval mode all orders are the one that samples are drawn in; without `of_step`, in training mode, none is.

        Raises:
            ValueError: if there is no seed where one is needed.
        """
        order_BL = self.orders(len(tokens_BLF), seed_B, None if of_step is None else of_step[SHARE])
        places_BLF = order_BL[..., None].expand_as(tokens_BLF)
        found = self(condition_B, tokens_BLF.gather(1, places_BLF), order_BL, seed_B)
        losses_BLF, hits_BLF = (
            torch.zeros_like(each).scatter(1, places_BLF, each) for each in (found.losses_NF, found.hits_NF.float())
        )
        terms = terms_of_groups(losses_BLF.mean(0), self.layout, hits_BLF.mean(0))
        return {"loss": found.mean, SHARE: (order_BL != self.scan_L).any(1).float().mean()} | terms

    def orders(self, batch: int, seed_B: Tensor | None, share: Tensor | None) -> Tensor:
        """The order of each sample, int64 [B, L].

        Args:
            batch: samples.
            seed_B: a random number of each, in training.
            share: of samples whose order is random, float32 []; None for all.

        Raises:
            ValueError: if there is no seed in training.
        """
        scan_BL = self.scan_L.expand(batch, -1)
        if not self.training:
            return scan_BL
        whether_B, which_B = self._seeds(seed_B)[:_PURPOSES]
        random_BL = random_orders(which_B, self.layout.positions)
        if share is None:
            return random_BL
        return torch.where((uniform(whether_B, 1)[0] < share)[:, None], random_BL, scan_BL)

    def _seeds(self, seed_B: Tensor | None) -> Tensor:
        """One for each purpose, int64 [N, B]."""
        if seed_B is None:
            raise ValueError("random orders and dropout in training need seed_B, a number per sample (or call eval())")
        return split_seed(seed_B, _PURPOSES + _DROPOUTS * len(self.blocks))

    def forward(
        self, label_B: Tensor, ordered_BLF: Tensor, order_BL: Tensor, seed_B: Tensor | None = None
    ) -> TokenLosses:
        """What the tokens cost, each given those before it in its sample's order.

        Args:
            label_B: classes; `null_class` for none.
            ordered_BLF: tokens, in that order.
            order_BL: the position of each.
            seed_B: int64, a random number per sample, which dropout needs.

        Returns:
            Mean, losses and hits of the tokens in their order, [B, L, F].
        """
        read_BLC = self.read(label_B, ordered_BLF[:, :-1], order_BL, seed_B)
        smoothing = self.config.label_smoothing if self.training else 0.0
        found: TokenLosses = self.head(read_BLC.flatten(0, 1), ordered_BLF.flatten(0, 1), smoothing=smoothing)
        shape = ordered_BLF.shape
        return TokenLosses(found.mean, found.losses_NF.view(shape), found.hits_NF.view(shape))

    def read(self, label_B: Tensor, given_BMF: Tensor, order_BL: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """What the head reads, from the class alone and after each of the given tokens, [B, M + 1, C]."""
        x_BSC = self._embedded(label_B, given_BMF) + self.places(order_BL, given_BMF.shape[1])
        condition_BSC = self.condition(label_B, slice(0, x_BSC.shape[1]))
        groups, dropouts = GroupCausal.next_token(x_BSC.shape[1]), self._dropouts(seed_B)
        for block, seeds_NB in zip(self._blocks(), dropouts, strict=True):
            x_BSC = block(x_BSC, condition_BSC, groups, seeds_NB=seeds_NB)
        return self.before_head(x_BSC[:, 1:], self.final_modulation(condition_BSC[:, 1:]))

    def _dropouts(self, seed_B: Tensor | None) -> list[Tensor | None]:
        """Seeds of each block, where something is dropped."""
        blocks = len(self.blocks)
        if not (self.training and (self.config.dropout or self.config.attention_dropout)):
            return [None] * blocks
        return list(self._seeds(seed_B)[_PURPOSES:].view(blocks, _DROPOUTS, -1).unbind())

    # ------------------------------------------------------------------------------------------- parts of the network

    def _embedded(self, label_B: Tensor, given_BMF: Tensor) -> Tensor:
        """Start, class and tokens, [B, S, C], float32."""
        start_B1C = self.start.float().expand(len(label_B), 1, -1)
        parts = (start_B1C, self.class_embed(label_B)[:, None].float(), self.token_embed(given_BMF).float())
        return torch.cat(parts, dim=1)

    def places(self, order_BL: Tensor, given: int) -> Tensor:
        """Where the tokens of `given` + 2 slots stand, and where the next ones belong, summed: float32 [B, S, C]."""
        rows_BL, length = order_BL + PREFIX, order_BL.shape[1]
        own_BMC = F.embedding(rows_BL[:, :given], self.position_embed.float())
        prefix_BPC = self.position_embed[:PREFIX].float().expand(len(order_BL), -1, -1)
        target_BTC = F.embedding(rows_BL[:, : given + 1], self.target_embed.float())
        return torch.cat((prefix_BPC, own_BMC), dim=1) + F.pad(target_BTC, (0, 0, 1, max(0, given + 1 - length)))

    def condition(self, label_B: Tensor, slots: slice) -> Tensor:
        """What modulates these slots, [B, slots, C], in the dtype of the products."""
        condition_BSC = self.class_embed(label_B)[:, None].float() + self.step_embed[slots].float()
        return F.silu(condition_BSC).to(compute_dtype(self.final_adaln.weight))

    def final_modulation(self, condition_BSC: Tensor) -> tuple[Tensor, Tensor]:
        """Scale (with 1 added) and shift before the head: in this order, unlike in the blocks."""
        scale, shift = cast("Tensor", self.final_adaln(condition_BSC)).chunk(2, dim=-1)
        return scale + 1, shift

    def before_head(self, x_BSC: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
        """What the head reads, in the dtype of the products."""
        return modulated_affine_norm(x_BSC, None, None, *modulation, compute_dtype(self.head.weight))

    def sample(self, plan: SamplingPlan, forcing: TeacherForcing | None = None) -> Tensor:  # noqa: ARG002
        """Draw position by position (`random_order_sampling.py`)."""
        from model.generators.random_order_sampling import generate

        return generate(self, plan)
