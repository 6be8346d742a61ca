"""Draws tokens of masked generators: all at once, keeps those that are surest, masks the others again (MaskGIT).

    for each step k of S, where r = (k + 1) / S is behind after it:
        logits of the masked positions alone, guided by the share of the schedule at k / S, annealed
        a token for each; its confidence, plus Gumbel noise at temperature choice_temperature * (1 - r)
        the least confident positions are masked again, as many as the mask schedule has at r; none at the end

Random numbers follow from the image's seed, the step and the position, so that neither the batch nor what else is
masked matters. Nothing in a step waits for the device: how many positions are masked after each step is known at the
beginning, and where some tokens are given, each image has a count of its own that is no larger.

Shape suffixes: B batch, S steps, L positions, M masked ones, F folds, C channels, N = B * M rows, V codes of a fold.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from model.config.masked import MaskedOptions
from model.generators.choosing import check_plan, draw, truncate
from model.generators.masked import MaskedGenerator
from model.layers.random_numbers import split_seed, uniform
from model.protocols import SamplingPlan


@torch.no_grad()
def generate(generator: MaskedGenerator, plan: SamplingPlan) -> Tensor:
    """Sample the tokens of one image per condition.

    Args:
        generator: in eval mode.
        plan: what to draw. Its `seed_B` decides; without it, the first of each image's uniform numbers does. A position
            of which some folds are given is masked with the others alone, which no training shows.

    Returns:
        `tokens_BLF`, int64.

    Raises:
        ValueError: if shapes do not fit, or the generator is in training mode.
    """
    return _Drawing(generator, plan).run()


class _Drawing:
    """The tokens of a batch on their way."""

    def __init__(self, generator: MaskedGenerator, plan: SamplingPlan) -> None:
        _check(generator, plan)
        self.generator, self.plan = generator, plan
        self.options = plan.order if isinstance(plan.order, MaskedOptions) else MaskedOptions()
        layout, device = generator.layout, plan.condition_B.device
        self.mask_F = torch.stack([torch.full((), mask, device=device) for mask in generator.mask_ids])
        batch = len(plan.condition_B)
        blank_BLF = self.mask_F.expand(batch, layout.positions, -1)
        kept = plan.kept_BLF
        self.start_BLF = blank_BLF if kept is None else torch.where(kept >= 0, kept.long(), blank_BLF)
        """What stands at a position while it is masked."""
        self.ids_BLF = self.start_BLF.clone()
        self.masked_BL = (self.start_BLF == blank_BLF).any(-1)
        self.seed_SB = split_seed(_seeds(plan), self.options.steps)

    def run(self) -> Tensor:
        """All steps but those that would draw nothing."""
        counts = self.options.counts(self.generator.layout.positions)
        count_SB = None
        if self.plan.kept_BLF is not None:
            counts_SP = _counts_of_all(self.options, self.generator.layout.positions, self.ids_BLF.device)
            count_SB = counts_SP[:, self.masked_BL.sum(1)]
        schedule = self.plan.schedule or self.generator.config.guidance_schedule
        for step, (count, left) in enumerate(pairwise(counts)):
            if count > left:
                guidance = self.plan.guidance * schedule.share(step / self.options.steps)
                self._step(step, guidance, count, left if count_SB is None else count_SB[step + 1, :, None])
        return self.ids_BLF

    def _step(self, step: int, guidance: float, count: int, left: Tensor | int) -> None:
        """Draw at the masked positions, `count` or fewer, and mask again all but the surest, until `left` are left."""
        layout, batch = self.generator.layout, len(self.ids_BLF)
        row_BM = self.masked_BL.long().argsort(dim=1, descending=True, stable=True)[:, :count]
        row_BMF = row_BM[..., None].expand(-1, -1, layout.folds)
        number_BL = uniform(self.seed_SB[step], layout.positions * (1 + layout.folds)).T
        noise_BL, number_BK = number_BL[:, : layout.positions], number_BL[:, layout.positions :]
        number_BMF = number_BK.reshape(batch, layout.positions, -1).gather(1, row_BMF)
        start_BMF, masked_BM = self.start_BLF.gather(1, row_BMF), self.masked_BL.gather(1, row_BM)
        # A row that is not masked is one of an image with fewer masks than others have: it stays as it is.
        stands_BMF = torch.where(masked_BM[..., None], start_BMF, self.ids_BLF.gather(1, row_BMF))
        given_BMF = stands_BMF != self.mask_F

        tokens_BMF, sure_BM = self._drawn(step, guidance, row_BM, stands_BMF, given_BMF, number_BMF)
        gumbel_BM = -torch.log(-torch.log(noise_BL.gather(1, row_BM) + 2.0**-25))
        sure_BM = (sure_BM + self._noise(step) * gumbel_BM).masked_fill(~masked_BM, torch.inf)
        rank_BM = sure_BM.argsort(dim=1, stable=True).argsort(dim=1)
        again_BM = masked_BM & (rank_BM < left)
        self.ids_BLF.scatter_(1, row_BMF, torch.where(again_BM[..., None], stands_BMF, tokens_BMF))
        self.masked_BL.scatter_(1, row_BM, again_BM)

    def _drawn(
        self, step: int, guidance: float, row_BM: Tensor, stands_BMF: Tensor, given_BMF: Tensor, number_BMF: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens of some positions, those that are given as they are; and how sure the others are, on average."""
        stands_NF, given_NF, number_NF = (each.flatten(0, 1) for each in (stands_BMF, given_BMF, number_BMF))
        totals: list[Tensor] = []

        def pick(logits_NV: Tensor, fold: int) -> Tensor:
            totals.append(logits_NV.logsumexp(-1))
            drawn_N = self._pick(logits_NV, step, number_NF[:, fold])
            return torch.where(given_NF[:, fold], stands_NF[:, fold], drawn_N)

        read_NC, without_NC = self._read(guidance, row_BM)
        drawn = self.generator.head.draw(read_NC, without_NC, guidance, pick, self._temperature(step))
        sure_NF = drawn.chosen_NF
        if self.options.confidence == "log-probability":
            sure_NF = sure_NF - torch.stack(totals, dim=1)
        open_NF = ~given_NF
        sure_N = (sure_NF * open_NF).sum(1) / open_NF.sum(1).clamp(min=1)
        return drawn.tokens_NF.view_as(stands_BMF), sure_N.view(row_BM.shape)

    def _read(self, guidance: float, row_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the head reads of the rows with the class, and without it: in one pass."""
        label_B = self.plan.condition_B
        if not guidance:
            return self.generator(self.ids_BLF, label_B, row_BM=row_BM).flatten(0, 1), None
        null_B = torch.full_like(label_B, self.generator.null_class)
        twice_BLF, twice_BM = torch.cat((self.ids_BLF, self.ids_BLF)), torch.cat((row_BM, row_BM))
        read_NC = self.generator(twice_BLF, torch.cat((label_B, null_B)), row_BM=twice_BM).flatten(0, 1)
        with_class, without = read_NC.chunk(2)
        return with_class, without

    def _pick(self, logits_NV: Tensor, step: int, number_N: Tensor) -> Tensor:
        """A token of each row, at the step's temperature; the likeliest where that is zero."""
        temperature = self._noise(step) if self.options.noisy_tokens else 1.0
        if not temperature:
            return logits_NV.argmax(-1)
        scaled_NV = logits_NV if temperature == 1 else logits_NV / temperature
        return draw(truncate(scaled_NV, self.plan.top_k, self.plan.top_p), number_N)

    def _left(self, step: int) -> float:
        """Part of the way that lies ahead after a step."""
        return 1 - (step + 1) / self.options.steps

    def _noise(self, step: int) -> float:
        return self.options.choice_temperature * self._left(step)

    def _temperature(self, step: int) -> float:
        annealed = 0.5 + 0.8 * self._left(step) if self.options.softmax_annealing else 1.0
        return self.plan.temperature * annealed


@cache
def _counts_of_all(options: MaskedOptions, positions: int, device: torch.device) -> Tensor:
    """`MaskedOptions.counts` of 0, 1, ... `positions` masked ones, int64 [S + 1, positions + 1].

    Never let go: a recording (CUDA graph) of the drawing reads them where they are.
    """
    with torch.inference_mode(False):
        counts = [options.counts(masked) for masked in range(positions + 1)]
        return torch.tensor(counts, device=device).T


def _seeds(plan: SamplingPlan) -> Tensor:
    """Those of the plan, or the bits of each image's first uniform number."""
    if plan.seed_B is not None:
        return plan.seed_B
    return plan.uniform_BLF[:, 0, 0].double().view(torch.int64)


def _check(generator: MaskedGenerator, plan: SamplingPlan) -> None:
    check_plan(generator, generator.layout, plan)
    if plan.order is not None and not isinstance(plan.order, MaskedOptions):
        raise ValueError(f"{type(plan.order).__name__} is of another order: generator kind masked takes MaskedOptions")
