"""Semantic regularization, and how a loss over more samples than fit at once is minimized in parts.

Shapes: N images of the global batch, C channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers.precision import without_autocast


def contrastive_loss(
    student_NC: Tensor,
    teacher_NC: Tensor,
    temperature: float = 1.0,
    normalize: bool = False,
    kept_N: Tensor | None = None,
) -> Tensor:
    """Semantic regularization: symmetric InfoNCE between images' tokens and the teacher's view of them.

    ImageFolder (arXiv 2410.01756, section 3.3), as published: raw dot products and a factor of 1. Both sides hold the
    same images in the same order, those of the whole global batch, since every other image is a negative.

    Args:
        student_NC: Spatial means of the semantic branch.
        teacher_NC: The teacher's features, projected to the same width.
        temperature: Factor on the logits.
        normalize: Bring both sides to length one first.
        kept_N: Images that take part, bool; the others are no negatives either. None: all.

    Returns:
        The mean over images that take part and directions, computed in float32; 0 if none does.

    Raises:
        ValueError: if the two sides differ in shape.
    """
    if student_NC.shape != teacher_NC.shape:
        raise ValueError(f"student {list(student_NC.shape)} and teacher {list(teacher_NC.shape)} differ in shape")
    with without_autocast(student_NC.device):
        student_NC, teacher_NC = student_NC.float(), teacher_NC.float()
        if normalize:
            student_NC, teacher_NC = F.normalize(student_NC, dim=1), F.normalize(teacher_NC, dim=1)
        logits_NN = temperature * teacher_NC @ student_NC.t()
        target_N = torch.arange(len(logits_NN), device=logits_NN.device)
        if kept_N is None:
            return (F.cross_entropy(logits_NN, target_N) + F.cross_entropy(logits_NN.t(), target_N)) / 2
        # One that is left out sees itself alone: its loss is 0, and so is its gradient.
        seen_NN = (kept_N & kept_N[:, None]) | (target_N == target_N[:, None])
        logits_NN = logits_NN.masked_fill(~seen_NN, -torch.inf)
        total = F.cross_entropy(logits_NN, target_N, reduction="sum")
        total = total + F.cross_entropy(logits_NN.t(), target_N, reduction="sum")
        return total / 2 / kept_N.sum().clamp(min=1)


def contrastive_gradients(
    student_NC: Tensor,
    teacher_NC: Tensor,
    temperature: float = 1.0,
    normalize: bool = False,
    kept_N: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`contrastive_loss` and its gradients to both sides, all detached, float32: [], [N, C], [N, C]."""
    with torch.enable_grad():
        sides = [side_NC.detach().float().requires_grad_() for side_NC in (student_NC, teacher_NC)]
        loss = contrastive_loss(sides[0], sides[1], temperature, normalize, kept_N)
        student_gradient_NC, teacher_gradient_NC = torch.autograd.grad(loss, sides)
    return loss.detach(), student_gradient_NC, teacher_gradient_NC


def temperature_at(progress: float, first: float, final: float | None = None, stairs: int | None = None) -> float:
    """The factor on the logits at a point of the run.

    ImageFolder's, from 1 to 100 in 200 epochs, is `temperature_at(step / steps, 1, 100, 200)`: the same within each
    epoch, and 99.505 in the last.

    Args:
        progress: share of the run that is done, of [0, 1].
        first: the factor at the begin.
        final: the factor at the end, reached on a line; None keeps the first.
        stairs: equal parts of the run within each of which the factor does not change; None for a line.
    """
    if final is None:
        return first
    if stairs is not None:
        progress = math.floor(progress * stairs) / stairs
    return first + (final - first) * min(max(progress, 0.0), 1.0)


def carry_gradients(value: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """A scalar that is `value`, and whose gradient to the first tensor of each pair is the second.

    So a loss that needs more samples than there is memory for is minimized in parts: its gradients to what the network
    makes of each sample are computed from outputs alone, and carried through the network later (GradCache, arXiv
    2101.06983).
    """
    linear = torch.stack([(made.float() * gradient).sum() for made, gradient in pairs]).sum()
    return value + (linear - linear.detach())
