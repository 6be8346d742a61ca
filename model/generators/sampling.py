"""Draws tokens scale by scale from a folded generator, with classifier-free guidance and top-k/top-p.

The random numbers come in as an argument, one for each token, so that an image depends on its own numbers alone: not on
its batch, its rank or the device's random generator.

Shape suffixes: B batch, L positions (K of one scale), F folds, V codebook size, P branches, C channels, H height,
W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.generators.next_scale import FoldedGenerator, SamplingState
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
        plan: what to draw. Guidance is that of the last scale; it grows linearly with the scale from 0 at the first.

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
    for scale, ramp in enumerate(guidance_ramp(guidance, len(layout.groups))):
        span = layout.span(scale)
        logits_BKFV = _guided(generator, state, input_BKC, ramp if guidance else None)
        tokens_BKF = draw(truncate(logits_BKFV, plan.top_k, plan.top_p), uniform_BLF[:, span])
        if kept is not None:
            tokens_BKF = torch.where(kept[:, span] >= 0, kept[:, span].long(), tokens_BKF)
        tokens.append(tokens_BKF)
        latent, input_BKC = forcing.next_scale(latent, tokens_BKF, scale)
    return torch.cat(tokens, dim=1)


def guidance_ramp(guidance: float, scales: int) -> list[float]:
    """Guidance of each scale: linear from 0 at the first to all at the last (VAR's `cfg * i / (S - 1)`)."""
    return [guidance * i / (scales - 1) for i in range(scales)] if scales > 1 else [guidance]


def truncate(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set the logits of unlikely tokens to -inf, along the last dimension.

    Top-k keeps what is not below the k-th largest. Top-p then drops the tokens, least likely first, while the
    probability dropped stays within 1 - p; the likeliest is always kept, and equal logits share one fate.
    """
    if top_p < 1:
        return logits.masked_fill(logits < _least_kept(logits, top_k, top_p), float("-inf"))
    if 0 < top_k < logits.shape[-1]:
        return logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[..., -1:], float("-inf"))
    return logits


def _least_kept(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The smallest logit that both leave, `[..., 1]`. To sort what top-k leaves takes a third of sorting all."""
    count = logits.shape[-1]
    if not 0 < top_k < count:
        ascending, ties = logits.sort(dim=-1).values, None
    else:
        ascending = logits.topk(top_k, dim=-1).values.flip(-1)
        # As many as are equal to the k-th largest beyond the k: they stay, and their probability counts.
        ties = (logits >= ascending[..., :1]).sum(-1, keepdim=True) - top_k
    odds = (ascending - ascending[..., -1:]).exp()
    dropped = odds.cumsum(-1) if ties is None else odds.cumsum(-1) + ties * odds[..., :1]
    is_dropped = dropped <= (1 - top_p) * dropped[..., -1:]
    first_kept = is_dropped.sum(dim=-1, keepdim=True).clamp(max=ascending.shape[-1] - 1)
    return ascending.gather(-1, first_kept)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative probability passes the uniform number (inverse CDF).

    Args:
        logits: `[..., V]`; -inf for tokens that must not be drawn.
        uniform: `[...]` in [0, 1).

    Returns:
        tokens `[...]`, int64.
    """
    # float64 and a threshold below the total: a token without probability is never reached.
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[..., -1:]
    threshold = (uniform.double().unsqueeze(-1) * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


def _guided(
    generator: FoldedGenerator, state: SamplingState, input_BKC: Tensor | None, guidance: float | None
) -> Tensor:
    """Logits of the next scale; with guidance the state holds the conditional and the unconditional half."""
    if guidance is None or input_BKC is None:
        return generator.step(state, input_BKC, guidance)
    return generator.step(state, torch.cat((input_BKC, input_BKC)), guidance)


def _check(generator: FoldedGenerator, forcing: TeacherForcing, plan: SamplingPlan) -> None:
    layout, uniform_BLF, kept = generator.layout, plan.uniform_BLF, plan.kept_BLF
    if generator.training:
        raise ValueError("the generator is in training mode: call eval() before sampling")
    if forcing.layout != layout:
        raise ValueError(f"the tokenizer's tokens are {forcing.layout}, and the generator's {layout}")
    expected = (len(plan.condition_B), layout.positions, layout.folds)
    if tuple(uniform_BLF.shape) != expected:
        raise ValueError(f"uniform numbers are {list(uniform_BLF.shape)}, but this needs {list(expected)}")
    if kept is not None and tuple(kept.shape) != expected:
        raise ValueError(f"kept tokens are {list(kept.shape)}, but this needs {list(expected)}")
