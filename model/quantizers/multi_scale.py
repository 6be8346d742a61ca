"""ImageFolder's quantizer: each branch is quantized as a pyramid of residuals (arXiv 2410.01756, section 3).

    residual = latent
    for each scale, coarse to fine:
        tokens   = the code of largest cosine similarity to each cell of the residual, area-resized to the scale's side
        step     = phi(codes of the tokens, resized to the latent grid);  phi mixes in a 3x3 convolution
        residual = residual - step;  quantized latent = quantized latent + step

Shapes: B batch, P branches (F folds, where they stand beside the positions), S scales, V codebook size, C channels of a
code, H = W side of the latent grid, L positions, K positions of one scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.config import GridTokenizerConfig
from model.families import build_quantizer
from model.layers.precision import without_autocast
from model.layers.visibility import group_of_position
from model.layout import TokenLayout
from model.protocols import Terms


class Quantized(NamedTuple):
    """What quantization gives in training."""

    latent_BPCHW: Tensor
    """Quantized latent; its gradient goes straight through to the latent that was quantized."""
    tokens_BLF: Tensor
    """Token ids of all scales, int64, also of those that quantizer dropout leaves out."""
    losses: Terms
    """Weighted: "codebook" moves codes and convolutions to the latents, "commitment" moves latents to the codes; and
    "sample_entropy", the part of the entropy term that is a mean over samples."""
    hits: Terms
    """Times that each code was chosen in this batch, int64 [S, V], by codebook."""
    seen: Terms
    """What codes were looked up for, float32 [B * L, C], by codebook."""
    means: Terms
    """What `FoldedQuantizer.losses_of_means` needs."""


class Branch(NamedTuple):
    """What quantization gives of one branch."""

    latent_BCHW: Tensor
    tokens_BL: Tensor
    seen_BLC: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    sample_entropy: Tensor | None
    share_SN: Tensor | None


def conv_of_scale(scales: int, convs: int) -> tuple[int, ...]:
    """Which of a branch's convolutions each scale uses: the one whose tick is nearest to scale / (scales - 1).

    The published models place 4 ticks evenly from 1/12 to 11/12, and any other number n from 1/(2n) to 1 - 1/(2n).
    Many distances tie, and neither "lower" nor "upper" reproduces what the published code makes of ties: it breaks them
    by the rounding of its double arithmetic (upwards for 4 ticks, downwards for 2, 3 and 5, both ways from 6 on), while
    float32 gives others still ([0,0,0,1,1,2,2,2,3,3] for ten scales and 4 ticks, which is wrong). So these are the
    same double operations in the same order, in Python floats, which are IEEE doubles on every machine.
    """
    if scales == 1 or convs == 1:
        return (0,) * scales
    first = 1 / 3 / convs if convs == 4 else 1 / 2 / convs
    step = ((1 - first) - first) / (convs - 1)
    ticks = [tick * step + first for tick in range(convs - 1)] + [1 - first]
    distances = ([abs(tick - scale / (scales - 1)) for tick in ticks] for scale in range(scales))
    return tuple(row.index(min(row)) for row in distances)


def area_resize(latent_BCHW: Tensor, side: int) -> Tensor:
    """Means over the cells of a [side, side] grid; the identity where the side is the latent's own."""
    return latent_BCHW if latent_BCHW.shape[-1] == side else F.adaptive_avg_pool2d(latent_BCHW, side)


class MultiScaleQuantizer(nn.Module):
    """One branch. All of it is computed in float32, whatever the precision around it.

    One scale is a plain quantizer of a grid, equal scales are residual quantization, and ascending ones a pyramid.
    """

    def __init__(self, config: GridTokenizerConfig) -> None:
        super().__init__()
        self.scales = config.scales
        self.ratio = config.residual_ratio
        self.lengths = tuple(config.scale_decay**scale for scale in range(len(self.scales)))
        count = config.residual_convs
        self.convs = conv_of_scale(len(self.scales), count) if count else ()
        self.quantizer = build_quantizer(config.quantizer)
        width = config.quantizer.width
        self.residual_convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(count))

    def step(self, tokens_BK: Tensor, scale: int) -> Tensor:
        """What the tokens of one scale add to the latent: codes [B, k * k] as ids -> [B, C, H, W]."""
        side, grid = self.scales[scale], self.scales[-1]
        codes_BKC = self.quantizer.codes(tokens_BK) * self.lengths[scale]
        step_BCHW = rearrange(codes_BKC, "b (h w) c -> b c h w", h=side)
        if side != grid:
            step_BCHW = F.interpolate(step_BCHW, size=(grid, grid), mode="bicubic", align_corners=False)
        # Pooling adds in the order of memory, and bits must not depend on who calls.
        step_BCHW = step_BCHW.contiguous()
        if not self.residual_convs:
            return step_BCHW
        conv = self.residual_convs[self.convs[scale]]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        mixed_BCHW = F.conv2d(step_BCHW, conv.weight.float(), conv.bias.float(), padding=1)
        return torch.add(step_BCHW.mul(1 - self.ratio), mixed_BCHW, alpha=self.ratio)

    def project(self, latent_BCHW: Tensor) -> Tensor:
        """What is quantized: the quantizer's projection of each position."""
        projected_BKC = self.quantizer.project(latent_BCHW.flatten(2).transpose(1, 2))
        return projected_BKC.transpose(1, 2).reshape(latent_BCHW.shape)

    @torch.no_grad()
    def cells(self, residual_BCHW: Tensor, scale: int) -> Tensor:
        """What is looked up at one scale, [B, k * k, C]."""
        cells_BCkk = area_resize(residual_BCHW, self.scales[scale])
        return rearrange(cells_BCkk, "b c h w -> b (h w) c") / self.lengths[scale]

    def quantize(self, projected_BCHW: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Tokens [B, L], what they were looked up for [B, L, C], and what each scale adds to the latent.

        With gradients to codes and convolutions.
        """
        search = self.quantizer.search()
        residual_BCHW = projected_BCHW.detach()
        cells, tokens, steps = [], [], []
        for scale in range(len(self.scales)):
            cells.append(self.cells(residual_BCHW, scale))
            tokens.append(search(cells[-1]))
            steps.append(self.step(tokens[-1], scale))
            residual_BCHW = residual_BCHW - steps[-1].detach()
        return torch.cat(tokens, dim=1), torch.cat(cells, dim=1), steps

    def forward(self, latent_BCHW: Tensor, keep_SB: Tensor | None, weight_SB: Tensor) -> Branch:
        """Quantize one branch in training.

        Args:
            latent_BCHW: What the encoder made, float32.
            keep_SB: 1 where an image keeps a scale, 0 where quantizer dropout leaves it out; None keeps all.
                The residual is never masked, so that the tokens do not depend on it.
            weight_SB: Weight of each image's squared error after each scale.

        Returns:
            All of it; the losses are sums over the scales.
        """
        projected_BCHW = self.project(latent_BCHW)
        tokens_BL, seen_BLC, steps = self.quantize(projected_BCHW)
        entropy = self._entropy(projected_BCHW, steps, weight_SB)
        if keep_SB is not None:
            steps = [step * keep_SB[scale, :, None, None, None] for scale, step in enumerate(steps)]
        sums_SBCHW = torch.stack(list(_running_sums(steps)))
        fixed_BCHW = projected_BCHW.detach()
        codebook_loss = ((sums_SBCHW - fixed_BCHW).square().mean((2, 3, 4)) * weight_SB).sum()
        commitment_loss = ((sums_SBCHW.detach() - projected_BCHW).square().mean((2, 3, 4)) * weight_SB).sum()
        quantized_BCHW = projected_BCHW + (sums_SBCHW[-1].detach() - fixed_BCHW)
        return Branch(quantized_BCHW, tokens_BL, seen_BLC, codebook_loss, commitment_loss, *entropy)

    def _entropy(
        self, projected_BCHW: Tensor, steps: list[Tensor], weight_SB: Tensor
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Sum over the scales of the mean entropy of shares, and their means [S, N]; of what each scale is to add."""
        soft = self.quantizer.soft
        if soft is None:
            return None, None
        samples, means = [], []
        residual_BCHW = projected_BCHW
        for scale, (side, weight_B) in enumerate(zip(self.scales, weight_SB, strict=True)):
            seen_BCHW = area_resize(residual_BCHW, side) if soft.entropy_of_cells else residual_BCHW
            share_BKN = soft.shares(seen_BCHW.flatten(2).transpose(1, 2) / self.lengths[scale])
            samples.append((soft.entropy(share_BKN).mean(1) * weight_B).sum())
            means.append((share_BKN.mean(1) * weight_B[:, None]).sum(0))
            residual_BCHW = residual_BCHW - steps[scale].detach()
        return torch.stack(samples).sum(), torch.stack(means)


def _running_sums(steps: list[Tensor]) -> list[Tensor]:
    """First step, first two, first three: added in the order in which sampling adds them, so that bits agree."""
    sums = [steps[0]]
    for step in steps[1:]:
        sums.append(sums[-1] + step)
    return sums


class FoldedQuantizer(nn.Module):
    """The quantizers of all branches: all of the tokenizer that a generator needs beside itself."""

    def __init__(self, config: GridTokenizerConfig) -> None:
        super().__init__()
        self.layout: TokenLayout = config.layout
        self.scales, self.grid, self.width = config.scales, config.grid, config.forcing_width
        self.code_dim = config.quantizer.width
        self.commitment = config.quantizer.commitment / (len(config.scales) if config.commitment_over_scales else 1)
        self.branches = nn.ModuleList(MultiScaleQuantizer(config) for _ in range(config.branches))
        self.learns = next(self.parameters(), None) is not None

    @property
    def codebooks(self) -> dict[str, tuple[int, int]]:
        """Scales and codes, by the name of the parameter that is the codebook; of fixed codes there is none."""
        shape = (len(self.scales), self.layout.vocabulary())
        names = {index: self.branch(index).quantizer.CODEBOOK for index in range(len(self.branches))}
        return {f"branches.{index}.quantizer.{name}": shape for index, name in names.items() if name is not None}

    def branch(self, index: int) -> MultiScaleQuantizer:
        """One branch: the first keeps detail, the last is the semantic one."""
        branch = self.branches[index]
        assert isinstance(branch, MultiScaleQuantizer)
        return branch

    def forward(
        self, latent_BPCHW: Tensor, kept_scales_B: Tensor | None = None, kept_mean_S: Tensor | None = None
    ) -> Quantized:
        """Quantize in training.

        Args:
            latent_BPCHW: What the encoder made.
            kept_scales_B: Number of scales that quantizer dropout keeps of each image; None keeps all.
            kept_mean_S: Share of the images of the global batch that keep each scale. Losses are means over the kept
                images: each image's term is divided by this share and by B, so that averaging over workers gives the
                mean over the global batch. None computes it from `kept_scales_B`.

        Returns:
            The quantized latent, tokens, losses (means over branches), and what was looked up.
        """
        with without_autocast(latent_BPCHW.device):
            latent_BPCHW = latent_BPCHW.float()
            keep_SB = None if kept_scales_B is None else self._keep(kept_scales_B)
            weight_SB = _loss_weights(latent_BPCHW, len(self.scales), keep_SB, kept_mean_S)
            branches = [
                self.branch(index)(latent_BCHW, keep_SB, weight_SB)
                for index, latent_BCHW in enumerate(latent_BPCHW.unbind(1))
            ]
            tokens_BLF = torch.stack([branch.tokens_BL for branch in branches], dim=2)
            shares = [branch.share_SN for branch in branches if branch.share_SN is not None]
            return Quantized(
                latent_BPCHW=torch.stack([branch.latent_BCHW for branch in branches], dim=1),
                tokens_BLF=tokens_BLF,
                losses=self._losses(branches),
                hits=dict(zip(self.codebooks, self.count_hits(tokens_BLF), strict=False)) if self.codebooks else {},
                seen=dict(zip(self.codebooks, (branch.seen_BLC.flatten(0, 1) for branch in branches), strict=False)),
                means={"code_shares": torch.stack(shares)} if shares else {},
            )

    def _losses(self, branches: list[Branch]) -> Terms:
        """Means over branches and scales, weighted; the commitment loss is a sum over scales if so asked."""
        scales, soft = len(self.scales), self.branch(0).quantizer.soft
        losses = {}
        if self.learns:
            losses["codebook"] = torch.stack([branch.codebook_loss for branch in branches]).mean() / scales
        if self.commitment:
            losses["commitment"] = torch.stack([branch.commitment_loss for branch in branches]).mean() * self.commitment
        entropies = [branch.sample_entropy for branch in branches if branch.sample_entropy is not None]
        if soft is not None:
            losses["sample_entropy"] = torch.stack(entropies).mean() * (soft.entropy_weight / scales)
        return losses

    def losses_of_means(self, means: Terms) -> Terms:
        """Of the global means: minus the entropy of the mean shares, a mean over branches and scales, weighted."""
        soft = self.branch(0).quantizer.soft
        if soft is None:
            return {}
        with without_autocast(means["code_shares"].device):
            return {"code_entropy": -soft.entropy_weight * soft.entropy(means["code_shares"].float()).mean()}

    def _keep(self, kept_scales_B: Tensor) -> Tensor:
        scales_S = torch.arange(len(self.scales), device=kept_scales_B.device)
        return (scales_S[:, None] < kept_scales_B[None, :]).float()

    @torch.no_grad()
    def count_hits(self, tokens_BLF: Tensor) -> Tensor:
        """How often each code occurs, per branch and scale: int64 [P, S, V]."""
        layout = self.layout
        scale_L = group_of_position(layout.groups, tokens_BLF.device)
        branch_F = torch.arange(layout.folds, device=tokens_BLF.device)
        row_LF = branch_F[None, :] * len(layout.groups) + scale_L[:, None]
        shape = (layout.folds, len(layout.groups), layout.vocabulary())
        chosen_N = (tokens_BLF + row_LF * layout.vocabulary()).flatten()
        # torch.bincount waits for the device: it asks for the largest number first.
        hits_N = chosen_N.new_zeros(shape[0] * shape[1] * shape[2])
        return hits_N.index_add_(0, chosen_N, torch.ones_like(chosen_N)).view(shape)

    @torch.no_grad()
    def tokenize(self, latent_BPCHW: Tensor) -> Tensor:
        """Token ids [B, L, F], int64, of a latent [B, P, C, H, W]."""
        with without_autocast(latent_BPCHW.device):
            latents = latent_BPCHW.float().unbind(1)
            tokens = [self._tokens(self.branch(p), latent_BCHW) for p, latent_BCHW in enumerate(latents)]
            return torch.stack(tokens, dim=2)

    def _tokens(self, branch: MultiScaleQuantizer, latent_BCHW: Tensor) -> Tensor:
        return branch.quantize(branch.project(latent_BCHW))[0]

    def dequantize(self, tokens_BLF: Tensor, keep: int | None = None) -> Tensor:
        """The latent [B, P, C, H, W] that the tokens of the first `keep` positions stand for (None: of all).

        Equal, bit for bit, to what quantization itself summed up.

        Raises:
            ValueError: if `keep` is not where a scale ends.
        """
        ends = self.layout.offsets[1:]
        if keep is not None and keep not in ends:
            raise ValueError(f"keep {keep}: scales end at {', '.join(map(str, ends))}")
        return self._sums(tokens_BLF, len(ends) if keep is None else ends.index(keep) + 1)[-1]

    def generator_input(self, tokens_BLF: Tensor) -> Tensor:
        """Teacher forcing: what the generator sees at the positions of all scales but the first.

        At each scale it sees the latent up to the scale before, area-resized to its own side, branches side by side.

        Returns:
            float32 [B, positions - positions of the first scale, P * C].
        """
        scales = self.scales
        if len(scales) == 1:
            shape = (len(tokens_BLF), 0, self.layout.folds * self.code_dim)
            return torch.zeros(shape, device=tokens_BLF.device)
        sums = self._sums(tokens_BLF, len(scales) - 1)
        rows = [_rows(latent_BPCHW, side) for latent_BPCHW, side in zip(sums, scales[1:], strict=True)]
        return torch.cat(rows, dim=1)

    def empty_latent(self, batch: int, device: torch.device) -> Tensor:
        """The latent [B, P, C, H, W] before the first scale: zeros."""
        return torch.zeros(batch, len(self.branches), self.code_dim, self.grid, self.grid, device=device)

    def next_scale(self, latent_BPCHW: Tensor, tokens_BKF: Tensor, scale: int) -> tuple[Tensor, Tensor | None]:
        """One step of sampling: add the tokens [B, k * k, F] of one scale to the latent (zeros before the first).

        Returns:
            The latent [B, P, C, H, W], and the generator's input for the next scale, [B, k' * k', P * C]; None after
            the last. Equal, bit for bit, to what `generator_input` gives for the same tokens.
        """
        with without_autocast(latent_BPCHW.device):
            latent_BPCHW = latent_BPCHW + self._step(tokens_BKF, scale)
            if scale + 1 == len(self.scales):
                return latent_BPCHW, None
            return latent_BPCHW, _rows(latent_BPCHW, self.scales[scale + 1])

    def _step(self, tokens_BKF: Tensor, scale: int) -> Tensor:
        steps = [self.branch(p).step(tokens_BK, scale) for p, tokens_BK in enumerate(tokens_BKF.unbind(2))]
        return torch.stack(steps, dim=1)

    def _sums(self, tokens_BLF: Tensor, count: int) -> list[Tensor]:
        tokens_BLF = tokens_BLF.long()
        with without_autocast(tokens_BLF.device):
            steps = [self._step(tokens_BLF[:, self.layout.span(scale)], scale) for scale in range(count)]
            return _running_sums(steps)


def _rows(latent_BPCHW: Tensor, side: int) -> Tensor:
    """Area-resize and lay out as a sequence: [B, P, C, H, W] -> [B, side * side, P * C]."""
    return rearrange(area_resize(latent_BPCHW.flatten(1, 2), side), "b pc h w -> b (h w) pc")


def _loss_weights(latent_BPCHW: Tensor, scales: int, keep_SB: Tensor | None, kept_mean_S: Tensor | None) -> Tensor:
    """Weight of each image's squared error after each scale: 1 / (images that keep it), 0 where nobody does."""
    batch = len(latent_BPCHW)
    if keep_SB is None:
        return latent_BPCHW.new_full((scales, batch), 1 / batch)
    mean_S = keep_SB.mean(1) if kept_mean_S is None else kept_mean_S.to(keep_SB)
    share_S = torch.where(mean_S > 0, 1 / (mean_S * batch), torch.zeros_like(mean_S))
    return keep_SB * share_S[:, None]
