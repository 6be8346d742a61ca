"""From logits to tokens: temperature, what is too unlikely, and the draw.

The random numbers come in as an argument, one for each token, so that an image depends on its own numbers alone: not on
its batch, its rank or the device's random generator. Shape suffix: V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.layout import TokenLayout
from model.protocols import SamplingPlan


def check_plan(generator: nn.Module, layout: TokenLayout, plan: SamplingPlan) -> None:
    """Refuse a plan that does not fit a generator's tokens, whatever its order.

    Raises:
        ValueError: if the generator is in training mode, or says which numbers have which shape.
    """
    if generator.training:
        raise ValueError("the generator is in training mode: call eval() before sampling")
    expected = (len(plan.condition_B), layout.positions, layout.folds)
    given = (("uniform numbers", plan.uniform_BLF, expected), ("kept tokens", plan.kept_BLF, expected))
    for name, numbers, shape in (*given, ("seeds", plan.seed_B, expected[:1])):
        if numbers is not None and tuple(numbers.shape) != shape:
            raise ValueError(f"{name} are {list(numbers.shape)}, but this needs {list(shape)}")


def choose(logits: Tensor, plan: SamplingPlan, uniform: Tensor) -> Tensor:
    """Draw a token from each row of logits, as the plan has it: temperature, then top-k, then top-p.

    Args:
        logits: `[..., V]`, guided, float32.
        plan: how.
        uniform: `[...]` in [0, 1).

    Returns:
        tokens `[...]`, int64.
    """
    if plan.temperature != 1:
        logits = logits / plan.temperature
    return draw(truncate(logits, plan.top_k, plan.top_p), uniform)


def chooser(plan: SamplingPlan, uniform_NF: Tensor, kept_NF: Tensor | None = None) -> Callable[[Tensor, int], Tensor]:
    """`choose` as a head asks for it: for the logits [N, V] of a fold, with that fold's uniform numbers.

    What is kept takes the place of what was drawn at once: a head may predict the next fold from it.
    """

    def chosen(logits_NV: Tensor, fold: int) -> Tensor:
        kept_N = None if kept_NF is None else kept_NF[:, fold]
        return keep_given(choose(logits_NV, plan, uniform_NF[:, fold]), kept_N)

    return chosen


def keep_given(tokens: Tensor, kept: Tensor | None) -> Tensor:
    """Tokens, but what is given (not negative in `kept`, of the same shape) in place of what was drawn."""
    return tokens if kept is None else torch.where(kept >= 0, kept.long(), tokens)


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
