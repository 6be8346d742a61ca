"""Terms that are no means over samples but functions of such means, over the whole global batch.

The entropy of the mean is not the mean of entropies, and a squared distance of means not the mean of squares. So the
means of all micro-batches and workers are taken first, then the terms and their gradients to the means, and each
micro-batch carries these through its own: the engine averages what micro-batches and workers carry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from model.losses.contrastive import carry_gradients
from trainer.engine.scalars import Terms


@dataclass(frozen=True)
class OfMeans:
    """Terms of the global means, and what a micro-batch carries of them."""

    terms: Terms
    """Scalars, without gradients."""
    gradients: Terms
    """Of the terms' sum, to each mean."""


def global_means(parts: Sequence[Terms]) -> Terms:
    """Means over the micro-batches of this rank and over all workers (a collective), without gradients, float32."""
    names = list(parts[0])
    if not names:
        return {}
    flat_MN = torch.stack([torch.cat([part[name].detach().float().flatten() for name in names]) for part in parts])
    mean_N = flat_MN.mean(0)
    dist.all_reduce(mean_N)
    mean_N = mean_N / dist.get_world_size()
    pieces = torch.split(mean_N, [parts[0][name].numel() for name in names])
    return {name: piece.view(parts[0][name].shape) for name, piece in zip(names, pieces, strict=True)}


def of_means(parts: Sequence[Terms], terms_of: Callable[[Terms], Terms]) -> OfMeans:
    """The terms of the global means, and their gradients (a collective).

    Args:
        parts: means over the samples of each micro-batch of this rank, by name.
        terms_of: a pure function from means to terms.
    """
    with torch.enable_grad():
        means = {name: mean.requires_grad_() for name, mean in global_means(parts).items()}
        terms = terms_of(means)
        if not terms:
            return OfMeans({}, {})
        gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(means.values()))
    return OfMeans({name: term.detach() for name, term in terms.items()}, dict(zip(means, gradients, strict=True)))


def carry_means(means: Terms, found: OfMeans) -> Tensor:
    """The terms' sum, with its gradients to the means of one micro-batch."""
    value = torch.stack(list(found.terms.values())).sum()
    return carry_gradients(value, *((means[name], gradient) for name, gradient in found.gradients.items()))
