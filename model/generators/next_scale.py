"""The folded next-scale transformer: VAR (arXiv 2404.02905) that predicts the tokens of all branches at a position.

    label ─ class_embed ─┬─ + start_embed ──────────────────────┐
                         │                                      ├─ + position + level ─ blocks ─ head ─ logits_BLFV
    input_BMC ── input ──┼──────────────────────────────────────┘
                         └─ AdaLN condition of every block and of the head

The input of scale s + 1 is the quantizer's sum over scales 1..s, resized to the side of scale s + 1, the branches
joined on channels (ImageFolder, arXiv 2410.01756, section 3.3). The first scale's input is the class.

Shape suffixes: B batch, L positions, M positions after the first scale, C channels, F folds, V codebook size,
H heads, D channels of a head, N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.config import NextScaleConfig
from model.generators.base import GeneratorNetwork
from model.generators.heads import Choose, build_head
from model.layers.attention import attend
from model.layers.linear import Linear, linear
from model.layers.modulation import cached_heads, gated_sum, modulated_norm, normalized_heads
from model.layers.precision import compute_dtype, without_autocast
from model.layers.random_numbers import block_chances, drop_path, drop_path_rates, split_seed, uniform
from model.layers.visibility import GroupCausal, group_of_position
from model.layout import TokenLayout
from model.losses.tokens import TokenLosses, terms_of_groups
from model.protocols import SamplingPlan, TeacherForcing, Terms

MAX_LOG_TEMPERATURE = math.log(100)
INPUT_MASK = "input_mask"
"""Share of the inputs that a step masks: what training is told of it, and a metric."""


@dataclass
class SamplingState:
    """What incremental sampling keeps between scales: the condition's projections, and all keys and values so far."""

    start_BLC: Tensor
    modulations: list[tuple[Tensor, ...]]
    head_modulation: tuple[Tensor, ...]
    keys_NBLHD: Tensor
    values_NBLHD: Tensor
    scale: int = 0


class Attention(nn.Module):
    """Self-attention with biases on queries and values only; queries and keys normalised to length one, or not."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)
        self.log_temperature = nn.Parameter(torch.full((heads,), math.log(4))) if qk_norm else None

    def project(self, x_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, L, H, D]` of one dtype; the queries carry the learned temperature."""
        qkv_BL3HD, temperature_H = self._projected(x_BLC), self._temperature()
        if temperature_H is not None:
            return normalized_heads(qkv_BL3HD, temperature_H)
        q_BLHD, k_BLHD, v_BLHD = qkv_BL3HD.unbind(2)
        return q_BLHD, k_BLHD, v_BLHD

    def project_into(self, x_BLC: Tensor, keys_BLHD: Tensor, values_BLHD: Tensor) -> Tensor:
        """As `project`, without gradients: keys and values are written where a cache has room for them."""
        return cached_heads(self._projected(x_BLC), self._temperature(), keys_BLHD, values_BLHD)

    def _projected(self, x_BLC: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return rearrange(linear(x_BLC, self.qkv.weight, bias), "b l (qkv h d) -> b l qkv h d", qkv=3, h=self.heads)

    def _temperature(self) -> Tensor | None:
        if self.log_temperature is None:
            return None
        return self.log_temperature.float().clamp(max=MAX_LOG_TEMPERATURE).exp()

    def mix(self, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, groups: GroupCausal | None) -> Tensor:
        """Attention over the given keys and the output projection: `[B, L, C]`."""
        # The published models without normalised queries use a quarter of the usual 1 / sqrt(D).
        scale = 1.0 if self.log_temperature is not None else 0.25 / math.sqrt(self.head_dim)
        out: Tensor = self.proj(attend(q_BLHD, k_BLHD, v_BLHD, groups, scale=scale).flatten(2))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind an affine-free LayerNorm that the condition scales, shifts and gates."""

    def __init__(self, config: NextScaleConfig, drop_path: float) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.drop_path = drop_path
        self.attention = Attention(width, config.heads, config.qk_norm)
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)
        self.adaln = None if config.shared_adaln else Linear(width, 6 * width)
        self.adaln_offset = nn.Parameter(torch.zeros(6, width)) if config.shared_adaln else None

    def modulation(self, condition_BC: Tensor, shared: nn.Linear | None) -> tuple[Tensor, ...]:
        """Two gates, two scales (with 1 added) and two shifts, each `[B, 1, C]`."""
        projection = self.adaln if self.adaln is not None else shared
        assert projection is not None
        rows = projection(condition_BC).float().view(len(condition_BC), 1, 6, -1)
        if self.adaln_offset is not None:
            rows = rows + self.adaln_offset
        gate1, gate2, scale1, scale2, shift1, shift2 = rows.unbind(2)
        return gate1, gate2, scale1 + 1, scale2 + 1, shift1, shift2

    def forward(
        self,
        x_BLC: Tensor,
        modulation: tuple[Tensor, ...],
        groups: GroupCausal | None,
        cache: tuple[Tensor, Tensor, slice] | None = None,
        chance_2B: Tensor | None = None,
    ) -> Tensor:
        """One block. With a cache (keys, values, span) the new keys are stored at `span`, and seen up to its end.

        `chance_2B` says by stochastic depth which samples miss attention and MLP (`random_numbers.py`).
        """
        gate1, gate2, scale1, scale2, shift1, shift2 = self._modulation_as(x_BLC.dtype, modulation, chance_2B)
        dtype = compute_dtype(self.fc1.weight)
        normed_BLC = modulated_norm(x_BLC, scale1, shift1).to(dtype)
        if cache is None:
            q, k, v = self.attention.project(normed_BLC)
        else:
            keys_BLHD, values_BLHD, span = cache
            q = self.attention.project_into(normed_BLC, keys_BLHD[:, span], values_BLHD[:, span])
            k, v = keys_BLHD[:, : span.stop], values_BLHD[:, : span.stop]
        x_BLC = gated_sum(x_BLC, gate1, self.attention.mix(q, k, v, groups).to(x_BLC.dtype))
        hidden = F.gelu(self.fc1(modulated_norm(x_BLC, scale2, shift2).to(dtype)), approximate="tanh")
        return gated_sum(x_BLC, gate2, self.fc2(hidden).to(x_BLC.dtype))

    def _modulation_as(
        self, dtype: torch.dtype, modulation: tuple[Tensor, ...], chance_2B: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The modulation in the residual stream's dtype; the gates carry what stochastic depth does to each sample."""
        gate1, gate2, *others = modulation
        if self.training and self.drop_path:
            attention_B, mlp_B = (None, None) if chance_2B is None else chance_2B.unbind()
            gate1, gate2 = drop_path(gate1, attention_B, self.drop_path), drop_path(gate2, mlp_B, self.drop_path)
        return tuple(part.to(dtype) for part in (gate1, gate2, *others))


class FoldedGenerator(GeneratorNetwork):
    """Predicts the F tokens of every position from the class and the earlier scales.

    Input layer and loss are float32 in any case, and so is the residual stream in sampling; everything else follows
    autocast or the weights' dtype (the published VAR's choices, arXiv 2404.02905).

    Args:
        config: sizes of the transformer.
        layout: a group per scale.
        input_width: channels of the sums that it sees (`TeacherForcing.width`): the codes of all branches.
    """

    config: NextScaleConfig

    def __init__(self, config: NextScaleConfig, layout: TokenLayout, input_width: int) -> None:
        super().__init__(config, layout)
        self.groups = GroupCausal(layout.groups)
        width = config.width
        self.class_embed = nn.Embedding(config.classes + 1, width)
        self.start_embed = nn.Parameter(torch.empty(layout.groups[0], width))
        self.position_embed = nn.Parameter(torch.empty(layout.positions, width))
        self.level_embed = nn.Parameter(torch.empty(len(layout.groups), width))
        self.input = nn.Linear(input_width, width)
        self.empty_embed = nn.Parameter(torch.empty(width)) if config.input_mask else None
        rates = drop_path_rates(config.drop_path, config.depth)
        self.blocks = nn.ModuleList([Block(config, rate) for rate in rates])
        self.shared_adaln = Linear(width, 6 * width) if config.shared_adaln else None
        self.head_adaln = Linear(width, 2 * width)
        self.head = build_head(config.head, width, layout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """VAR's initialization: all projections alike, then gates near zero, and a small head."""
        width, depth = self.config.width, self.config.depth
        std = math.sqrt(1 / (3 * width))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for table in (self.start_embed, self.position_embed, self.level_embed, self.head.weight):
            nn.init.trunc_normal_(table, std=std)
        if self.empty_embed is not None:
            nn.init.trunc_normal_(self.empty_embed, std=std)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            self.head_adaln.weight.mul_(0.5)
            for block in self._blocks():
                block.attention.proj.weight.div_(math.sqrt(2 * depth))
                block.fc2.weight.div_(math.sqrt(2 * depth))
                if block.adaln is not None:
                    self._scale_adaln(block.adaln.weight, 2 * width)
                if block.adaln_offset is not None:
                    nn.init.normal_(block.adaln_offset, std=width**-0.5)
                    self._scale_adaln(block.adaln_offset, 2)

    def _scale_adaln(self, weight: Tensor, gates: int) -> None:
        weight[:gates].mul_(self.config.adaln_gamma_init)
        weight[gates:].mul_(0.5)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def no_decay_parameters(self) -> set[str]:
        """Names of the parameters without weight decay: vectors, and the tables of positions, levels and offsets."""
        tables = ("start_embed", "position_embed", "level_embed", "place_embed", "adaln_offset")
        return {name for name, p in self.named_parameters() if p.ndim < 2 or name.rsplit(".", 1)[-1] in tables}

    def forward(
        self,
        label_B: Tensor,
        input_BMC: Tensor,
        seed_B: Tensor | None = None,
        tokens_BLF: Tensor | None = None,
        mask_share: Tensor | None = None,
    ) -> Tensor | TokenLosses:
        """Logits of all positions from the true tokens of the earlier scales (teacher forcing), or their loss.

        Args:
            label_B: classes; `null_class` for none.
            input_BMC: the quantizer's `generator_input`, for all positions after the first scale.
            seed_B: int64, a random number per sample, which stochastic depth in training needs (`random_numbers.py`).
            tokens_BLF: the true tokens. With them the logits are never held as a whole.
            mask_share: float32 [], share of the inputs that are masked; None for none.

        Returns:
            `logits_BLFV`, float32, of a head that needs no tokens for them; with tokens their `TokenLosses` [B, L, F].

        Raises:
            ValueError: if the input has not the layout's shape, or there is no seed where one is needed.
        """
        expected = (len(label_B), self.layout.positions - self.layout.groups[0], self.input.in_features)
        if tuple(input_BMC.shape) != expected:
            raise ValueError(f"generator input is {list(input_BMC.shape)}, but this layout needs {list(expected)}")
        condition_BC = self.class_embed(label_B).float()
        given_BMC = self._masked(linear_fp32(self.input, input_BMC), seed_B, mask_share)
        x_BLC = torch.cat((condition_BC[:, None] + self.start_embed, given_BMC), dim=1)
        # The stream has the dtype of the products, as in VAR's training; sampling keeps it in float32, as VAR does.
        x_BLC = (x_BLC + self._places(slice(0, self.layout.positions))).to(compute_dtype(self.head.weight))
        modulations, head_modulation = self._condition(condition_BC)
        chances = block_chances(seed_B, len(modulations))
        for block, modulation, chance_2B in zip(self._blocks(), modulations, chances, strict=True):
            x_BLC = block(x_BLC, modulation, self.groups, chance_2B=chance_2B)
        if tokens_BLF is None:
            return self._logits(self._before_head(x_BLC, head_modulation))
        read_NC = self._before_head(x_BLC, head_modulation).flatten(0, 1)
        smoothing = self.config.label_smoothing if self.training else 0.0
        found: TokenLosses = self.head(read_NC, tokens_BLF.flatten(0, 1), smoothing=smoothing)
        return TokenLosses(found.mean, found.losses_NF.view(tokens_BLF.shape), found.hits_NF.view(tokens_BLF.shape))

    def _masked(self, given_BMC: Tensor, seed_B: Tensor | None, share: Tensor | None) -> Tensor:
        """Inputs, with `empty_embed` in the place of some: token-mask augmentation, of each input by itself."""
        if not self.training or self.empty_embed is None or share is None:
            return given_BMC
        if seed_B is None:
            raise ValueError("input_mask in training needs seed_B, one random number per sample (or call eval())")
        own_B = split_seed(seed_B, 2 * self.config.depth + 1)[-1]  # those before are stochastic depth's
        is_masked_BM = share > uniform(own_B, given_BMC.shape[1]).T
        return torch.where(is_masked_BM[..., None], self.empty_embed.to(given_BMC.dtype), given_BMC)

    def of_step(self, step: int, seed_S: Tensor) -> dict[str, Tensor]:
        """The share of the inputs that a step masks: drawn evenly up to the largest, by its first sample's seed."""
        own_1 = split_seed(seed_S[:1], 2 * self.config.depth + 2)[-1]
        return {INPUT_MASK: uniform(own_1, 1)[0, 0] * self.config.largest_input_mask(step)}

    def training_terms(
        self,
        tokens_BLF: Tensor,
        condition_B: Tensor,
        seed_B: Tensor | None,
        forcing: TeacherForcing | None,
        of_step: Mapping[str, Tensor] | None = None,
    ) -> Terms:
        """Mean cross-entropy of all tokens, and that of each group and fold with the share of likeliest tokens.

        With `input_mask` the share of masked inputs, too; in training mode without `of_step`, no input is.

        Raises:
            ValueError: if there are no sums to predict from.
        """
        with torch.no_grad():
            input_BMC = _needed(forcing).generator_input(tokens_BLF)
        share = None if of_step is None else of_step[INPUT_MASK]
        loss, losses_BLF, hits_BLF = self(condition_B, input_BMC, seed_B, tokens_BLF, share)
        masked = {INPUT_MASK: share} if self.training and share is not None else {}
        return {"loss": loss} | masked | terms_of_groups(losses_BLF.mean(0), self.layout, hits_BLF.float().mean(0))

    def sample(self, plan: SamplingPlan, forcing: TeacherForcing | None) -> Tensor:
        """Draw scale by scale (`sampling.py`)."""
        from model.generators.sampling import generate

        return generate(self, _needed(forcing), plan)

    def start(self, label_B: Tensor) -> SamplingState:
        """Begin to sample images of these classes: project the condition once, and reserve the KV cache."""
        condition_BC = self.class_embed(label_B).float()
        modulations, head_modulation = self._condition(condition_BC)
        config, dtype = self.config, compute_dtype(self.head.weight)
        shape = (config.depth, len(label_B), config.heads, self.layout.positions, config.width // config.heads)
        # A head's keys lie side by side: a kernel reads them a head at a time.
        keys, values = (torch.empty(shape, dtype=dtype, device=label_B.device).transpose(2, 3) for _ in range(2))
        return SamplingState(condition_BC[:, None] + self.start_embed, modulations, head_modulation, keys, values)

    def step(self, state: SamplingState, input_BLC: Tensor | None) -> Tensor:
        """What the head reads of the next scale, whose keys and values join the cache. Call without gradients.

        Args:
            state: from `start`; it moves on by one scale.
            input_BLC: the quantizer's input for this scale; None for the first.

        Returns:
            `[B, k * k, C]`, for `head.draw` or `head.logits`.

        Raises:
            ValueError: if an input is missing, or given at the first scale, or all scales are done.
        """
        if state.scale >= len(self.layout.groups):
            raise ValueError(f"all {len(self.layout.groups)} scales are sampled already")
        if (input_BLC is None) != (state.scale == 0):
            raise ValueError(f"scale {state.scale} takes {'no' if state.scale == 0 else 'an'} input")
        span = self.layout.span(state.scale)
        x_BLC = state.start_BLC if input_BLC is None else linear_fp32(self.input, input_BLC)
        x_BLC = x_BLC + self._places(span)
        for i, block in enumerate(self._blocks()):
            cache = (state.keys_NBLHD[i], state.values_NBLHD[i], span)
            x_BLC = block(x_BLC, state.modulations[i], None, cache)
        state.scale += 1
        return self._before_head(x_BLC, state.head_modulation)

    def draw(self, read_BLC: Tensor, guidance: float | None, choose: Choose) -> Tensor:
        """Tokens [B, k * k, F] of a scale from what `step` gives.

        Args:
            read_BLC: with guidance the second half of the batch is the first without its class.
            guidance: logits are c + guidance * (c - u); None if there is no second half.
            choose: from logits [N, V] of a fold to tokens, N running over the batch and then the positions.
        """
        with_class_BLC, without_BLC = (read_BLC, None) if guidance is None else read_BLC.chunk(2)
        without_NC = None if without_BLC is None else without_BLC.flatten(0, 1)
        drawn = self.head.draw(with_class_BLC.flatten(0, 1), without_NC, guidance or 0.0, choose)
        return drawn.tokens_NF.view(*with_class_BLC.shape[:2], -1)

    def _places(self, span: slice) -> Tensor:
        """Position and level embeddings of a range of positions, `[L, C]`."""
        levels_L = group_of_position(self.layout.groups, self.level_embed.device)[span]
        return self.position_embed[span] + F.embedding(levels_L, self.level_embed)

    def _condition(self, condition_BC: Tensor) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """What the class does to each block, and to the head."""
        activated_BC = F.silu(condition_BC).to(compute_dtype(self.head_adaln.weight))
        modulations = [block.modulation(activated_BC, self.shared_adaln) for block in self._blocks()]
        scale, shift = self.head_adaln(activated_BC).float().view(len(condition_BC), 1, 2, -1).unbind(2)
        return modulations, (scale + 1, shift)

    def _before_head(self, x_BLC: Tensor, head_modulation: tuple[Tensor, ...]) -> Tensor:
        """What the head reads, in the dtype of the products: the published head is a layer like the others."""
        scale, shift = (part.to(x_BLC.dtype) for part in head_modulation)
        return modulated_norm(x_BLC, scale, shift).to(compute_dtype(self.head.weight))

    def _logits(self, read_BLC: Tensor) -> Tensor:
        """Logits in float32, split into branches (the first is detail, the last semantic)."""
        logits_NFV = torch.stack(self.head.logits(read_BLC.flatten(0, 1)), dim=1)
        return logits_NFV.view(*read_BLC.shape[:2], *logits_NFV.shape[1:])


def _needed(forcing: TeacherForcing | None) -> TeacherForcing:
    if forcing is None:
        raise ValueError("generator kind next-scale needs the tokenizer's multi-scale sums")
    return forcing


def linear_fp32(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in float32 whatever the weights' dtype and autocast: for inputs and logits."""
    with without_autocast(x.device):
        bias = None if layer.bias is None else layer.bias.float()
        return F.linear(x.float(), layer.weight.float(), bias)
