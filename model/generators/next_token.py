"""LlamaGen (arXiv 2406.06525): a language model over the positions of an image, with F tokens at each.

    slot        0        1      2      …
    input     class     t0     t1      …       the class stands before the first position; its turn is by zero
    predicts   t0       t1     t2      …

Where folds are unfolded (`TokenLayout.unfolded`), the tokens of one place share its row and column, and a learned
vector tells the folds apart.

Shape suffixes: B batch, L positions (as many slots), F folds, C channels, N sequences times positions, R sequences.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from model.config import NextTokenConfig
from model.generators.base import GeneratorNetwork
from model.generators.embedding import FoldEmbedding
from model.generators.heads import build_head
from model.layers.dropout import dropped_sum, element_dropout
from model.layers.linear import Linear
from model.layers.precision import compute_dtype
from model.layers.random_numbers import block_chances, drop_path, drop_path_rates, split_seed
from model.layers.rms_norm import RMSNorm, gated
from model.layers.rotary import grid_rotation, line_rotation
from model.layers.self_attention import LayerCache, SelfAttention
from model.layers.visibility import GroupCausal
from model.layout import TokenLayout
from model.losses.tokens import TokenLosses, terms_of_groups
from model.protocols import SamplingPlan, TeacherForcing, Terms

INITIAL_STD = 0.02


class Block(nn.Module):
    """Attention and a gated MLP, each behind an RMSNorm."""

    def __init__(self, config: NextTokenConfig, rate: float) -> None:
        super().__init__()
        self.dropout, self.drop_path = config.dropout, rate
        self.norm1, self.norm2 = RMSNorm(config.width), RMSNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads, bias=False)
        self.fc1 = Linear(config.width, 2 * config.hidden, bias=False)
        self.fc2 = Linear(config.hidden, config.width, bias=False)

    def forward(
        self,
        x_BLC: Tensor,
        groups: GroupCausal | None,
        rotation_LD2: Tensor | None,
        cache: LayerCache | None = None,
        seed_2B: Tensor | None = None,
        chance_2B: Tensor | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x_BLC: the residual stream.
            groups: who sees whom; None sees all that the cache holds.
            rotation_LD2: of these slots.
            cache: of earlier slots, in sampling.
            seed_2B: a random number per sample for each dropout, in training.
            chance_2B: by which samples miss attention and MLP (`random_numbers.block_chances`), in training.
        """
        dtype = compute_dtype(self.fc1.weight)
        seeds, chances = ((None, None) if each is None else each.unbind() for each in (seed_2B, chance_2B))
        mixed_BLC = self.attention(self.norm1(x_BLC, dtype), groups, rotation_LD2=rotation_LD2, cache=cache)
        x_BLC = self._sum(x_BLC, mixed_BLC, seeds[0], chances[0])
        return self._sum(x_BLC, self.fc2(gated(self.fc1(self.norm2(x_BLC, dtype)))), seeds[1], chances[1])

    def _sum(self, x_BLC: Tensor, branch_BLC: Tensor, seed_B: Tensor | None, chance_B: Tensor | None) -> Tensor:
        if self.training and self.drop_path:
            return x_BLC + drop_path(branch_BLC, chance_B, self.drop_path)
        if self.training and self.dropout:
            return dropped_sum(x_BLC, branch_BLC, seed_B, self.dropout)
        return x_BLC + branch_BLC


class NextTokenGenerator(GeneratorNetwork):
    """Predicts the F tokens of each position from the class and the positions before it.

    The residual stream has the weights' dtype, products autocast's; norms, rotations and loss are float32 (specs of
    LlamaGen).

    Args:
        config: sizes of the transformer.
        layout: of the tokens.
        forcing_width: of the tokenizer's sums, which are of no use here.
    """

    config: NextTokenConfig

    def __init__(self, config: NextTokenConfig, layout: TokenLayout, forcing_width: int | None = None) -> None:  # noqa: ARG002
        super().__init__(config, layout)
        width = config.width
        self.class_embed = nn.Embedding(config.classes + 1, width)
        self.token_embed = FoldEmbedding(layout, width)
        self.position_embed = nn.Parameter(torch.empty(layout.positions, width)) if config.learned_positions else None
        self.fold_embed = nn.Parameter(torch.empty(layout.interleaved, width)) if layout.interleaved > 1 else None
        rates = drop_path_rates(config.drop_path, config.depth)
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = RMSNorm(width)
        self.head = build_head(config.head, width, layout, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: normal of one width for all, and a head that starts at even odds."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
        for table in (self.token_embed.weight, self.position_embed, self.fold_embed):
            if table is not None:
                nn.init.normal_(table, std=INITIAL_STD)
        nn.init.zeros_(self.head.weight)

    def no_decay_parameters(self) -> set[str]:
        """Vectors; both tables of embeddings decay, as published, and what places are told by does not."""
        tables = ("position_embed", "fold_embed", "place_embed")
        return {name for name, p in self.named_parameters() if p.ndim < 2 or name.rsplit(".", 1)[-1] in tables}

    def forward(self, label_B: Tensor, tokens_BLF: Tensor, seed_B: Tensor | None = None) -> TokenLosses:
        """What the true tokens cost, each position given the class and the positions before it.

        Args:
            label_B: classes; `null_class` for none.
            tokens_BLF: ids.
            seed_B: int64, a random number per sample, which dropout and stochastic depth in training need.

        Returns:
            Mean, losses and hits, [B, L, F].

        Raises:
            ValueError: if there is no seed where one is needed.
        """
        read_BLC = self.read(label_B, tokens_BLF[:, :-1], seed_B)
        smoothing = self.config.label_smoothing if self.training else 0.0
        found: TokenLosses = self.head(read_BLC.flatten(0, 1), tokens_BLF.flatten(0, 1), smoothing=smoothing)
        shape = tokens_BLF.shape
        return TokenLosses(found.mean, found.losses_NF.view(shape), found.hits_NF.view(shape))

    def training_terms(
        self,
        tokens_BLF: Tensor,
        condition_B: Tensor,
        seed_B: Tensor | None,
        forcing: TeacherForcing | None = None,  # noqa: ARG002 - ids are all that it reads
    ) -> Terms:
        """Mean cross-entropy of all tokens, and that of each group and fold with the share of likeliest tokens."""
        loss, losses_BLF, hits_BLF = self(condition_B, tokens_BLF, seed_B)
        return {"loss": loss} | terms_of_groups(losses_BLF.mean(0), self.layout, hits_BLF.float().mean(0))

    def read(self, label_B: Tensor, given_BMF: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """What the head reads, from the class alone and after each of the given tokens, [B, M + 1, C]."""
        x_BLC = torch.cat((self.class_embed(label_B)[:, None], self.embedded(given_BMF, 0)), dim=1)
        seeds, chances = self._randomness(seed_B)
        if self.training and self.config.token_dropout:
            x_BLC = element_dropout(x_BLC, None if seeds is None else seeds[0], self.config.token_dropout)
        groups, rotation = GroupCausal.next_token(x_BLC.shape[1]), self.rotation(x_BLC.shape[1], x_BLC.device)
        for number, block in enumerate(self._blocks()):
            seed_2B = None if seeds is None else seeds[2 * number + 1 : 2 * number + 3]
            x_BLC = block(x_BLC, groups, rotation, None, seed_2B, chances[number])
        return self.before_head(x_BLC)

    def _randomness(self, seed_B: Tensor | None) -> tuple[Tensor | None, list[Tensor | None]]:
        """Seeds of each dropout, and what stochastic depth goes by, where training has them."""
        config, depth = self.config, self.config.depth
        if seed_B is None or not (self.training and (config.dropout or config.token_dropout or config.drop_path)):
            return None, [None] * depth
        of_dropout_B, of_depth_B = split_seed(seed_B, 2).unbind()
        return split_seed(of_dropout_B, 2 * depth + 1), block_chances(of_depth_B if config.drop_path else None, depth)

    # ------------------------------------------------------------------------------------------- parts of the network

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def embedded(self, tokens_BMF: Tensor, first: int) -> Tensor:
        """Inputs from the tokens of positions `first`, first + 1, ...: [B, M, C]."""
        x_BMC: Tensor = self.token_embed(tokens_BMF)
        span = slice(first, first + x_BMC.shape[1])
        if self.position_embed is not None:
            x_BMC = x_BMC + self.position_embed[span]
        if self.fold_embed is not None:
            x_BMC = x_BMC + self.fold_embed.repeat(self.layout.folded().positions, 1)[span]
        return x_BMC

    def rotation(self, slots: int, device: torch.device) -> Tensor | None:
        """Rotations of the first slots, float32 whatever the weights are: zeros for the class, as published."""
        config, layout = self.config, self.layout
        if config.rotary == "none":
            return None
        head_dim, places_L = config.width // config.heads, torch.arange(slots - 1, device=device)
        if config.rotary == "line":
            turns = line_rotation(places_L, head_dim)
        else:
            side, cells_L = math.isqrt(layout.folded().positions), places_L // layout.interleaved
            turns = grid_rotation(cells_L // side, cells_L % side, head_dim)
        return torch.cat((turns.new_zeros(1, head_dim // 2, 2), turns))

    def before_head(self, x_BLC: Tensor) -> Tensor:
        """What the head reads, in the dtype of the products."""
        return cast("Tensor", self.norm(x_BLC, compute_dtype(self.head.weight)))

    def sample(self, plan: SamplingPlan, forcing: TeacherForcing | None = None) -> Tensor:  # noqa: ARG002
        """Draw position by position (`next_token_sampling.py`)."""
        from model.generators.next_token_sampling import generate

        return generate(self, plan)
