"""Draws tokens scale by scale from a folded generator, with classifier-free guidance.

Shape suffixes: B batch, L positions (K of one scale), F folds, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import NextScaleConfig
from model.config.sampling import GuidanceSchedule
from model.generators.choosing import check_plan, chooser
from model.generators.next_scale import FoldedGenerator
from model.protocols import SamplingPlan, TeacherForcing


@torch.no_grad()
def generate(
    generator: FoldedGenerator,
    forcing: TeacherForcing,
    plan: SamplingPlan,
) -> Tensor:
    """Sample the tokens of one image per condition.

    Args:
        generator: in eval mode.
        forcing: of the tokenizer whose tokens the generator was trained on.
        plan: what to draw.

    Returns:
        `tokens_BLF`, int64.

    Raises:
        ValueError: if shapes or layouts do not fit, or the generator is in training mode.
    """
    layout = generator.layout
    _check(generator, forcing, plan)
    label_B, uniform_BLF, kept, guidance = plan.condition_B, plan.uniform_BLF, plan.kept_BLF, plan.guidance
    latent = forcing.empty_latent(len(label_B), uniform_BLF.device)
    null_B = torch.full_like(label_B, generator.null_class)
    state = generator.start(torch.cat((label_B, null_B)) if guidance else label_B)
    input_BKC: Tensor | None = None
    tokens = []
    for scale, share in enumerate(guidance_shares(plan.schedule, len(layout.groups))):
        span = layout.span(scale)
        if guidance and input_BKC is not None:
            input_BKC = torch.cat((input_BKC, input_BKC))
        read_BKC = generator.step(state, input_BKC)
        kept_NF = None if kept is None else kept[:, span].flatten(0, 1)
        choose_fold = chooser(plan, uniform_BLF[:, span].flatten(0, 1), kept_NF)
        tokens_BKF = generator.draw(read_BKC, guidance * share if guidance else None, choose_fold)
        tokens.append(tokens_BKF)
        latent, input_BKC = forcing.next_scale(latent, tokens_BKF, scale)
    return torch.cat(tokens, dim=1)


def guidance_shares(schedule: GuidanceSchedule | None, scales: int) -> list[float]:
    """Share of the guidance at each scale; as published linear, from 0 at the first to all at the last (VAR)."""
    schedule = schedule or NextScaleConfig.guidance_schedule
    return [schedule.share(i / (scales - 1)) for i in range(scales)] if scales > 1 else [1.0]


def _check(generator: FoldedGenerator, forcing: TeacherForcing, plan: SamplingPlan) -> None:
    check_plan(generator, generator.layout, plan)
    if forcing.layout != generator.layout:
        raise ValueError(f"the tokenizer's tokens are {forcing.layout}, and the generator's {generator.layout}")
