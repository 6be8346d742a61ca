"""Semantic regularization, and how a loss over more samples than fit at once is minimized in parts.

Shapes: N images of the global batch, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers.precision import without_autocast


def contrastive_loss(
    student_NC: Tensor, teacher_NC: Tensor, temperature: float = 1.0, normalize: bool = False
) -> Tensor:
    """Semantic regularization: symmetric InfoNCE between images' tokens and the teacher's view of them.

    ImageFolder (arXiv 2410.01756, section 3.3), as published: raw dot products and a factor of 1. Both sides hold the
    same images in the same order, those of the whole global batch, since every other image is a negative.

    Args:
        student_NC: Spatial means of the semantic branch.
        teacher_NC: The teacher's features, projected to the same width.
        temperature: Factor on the logits.
        normalize: Bring both sides to length one first.

    Returns:
        The mean over images and directions, computed in float32.

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
        return (F.cross_entropy(logits_NN, target_N) + F.cross_entropy(logits_NN.t(), target_N)) / 2


def contrastive_gradients(
    student_NC: Tensor, teacher_NC: Tensor, temperature: float = 1.0, normalize: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`contrastive_loss` and its gradients to both sides, all detached, float32: [], [N, C], [N, C]."""
    with torch.enable_grad():
        sides = [side_NC.detach().float().requires_grad_() for side_NC in (student_NC, teacher_NC)]
        loss = contrastive_loss(sides[0], sides[1], temperature, normalize)
        student_gradient_NC, teacher_gradient_NC = torch.autograd.grad(loss, sides)
    return loss.detach(), student_gradient_NC, teacher_gradient_NC


def carry_gradients(value: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """A scalar that is `value`, and whose gradient to the first tensor of each pair is the second.

    So a loss that needs more samples than there is memory for is minimized in parts: its gradients to what the network
    makes of each sample are computed from outputs alone, and carried through the network later (GradCache, arXiv
    2101.06983).
    """
    linear = torch.stack([(made.float() * gradient).sum() for made, gradient in pairs]).sum()
    return value + (linear - linear.detach())
