"""Contrastive losses over the global batch, however that is cut into micro-batches and over workers.

Every image is a negative of every other one, so such a loss is no mean over micro-batches. It is computed as GradCache
does (arXiv 2101.06983):

1. what is compared of each micro-batch is made: by a preview of all of them without gradients, or, where a step has one
   micro-batch, in its pass
2. the vectors of all micro-batches and workers give the loss, and its gradients to this rank's vectors
3. each micro-batch carries the gradients of its own vectors through the network, in its ordinary pass

The second pass makes the same vectors as the first: the network draws by each sample's seed (random_numbers.py).

Shapes: B samples of a micro-batch, R of this rank, N of the global batch, P branches that are compared, S = P + 1
sides, C channels of a code, D of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from model.losses.contrastive import carry_gradients, contrastive_gradients


@dataclass(frozen=True)
class Sides:
    """What one contrastive loss compares of a micro-batch."""

    student_BPC: Tensor
    """Means of the branches that are compared."""
    teacher_BC: Tensor
    """The teacher's features, projected."""
    left_out_B: Tensor | None = None
    """Images that take no part, bool; None for none."""


@dataclass(frozen=True)
class Compared:
    """What a micro-batch carries of the comparison of all of them."""

    loss: Tensor
    """A scalar, over the global batch."""
    student_gradient_BPC: Tensor
    """Of the loss to this micro-batch's vectors."""
    teacher_gradient_BC: Tensor


def compare(parts: Sequence[Sides], factor: float, *, normalize: bool) -> list[Compared]:
    """Step 2 (a collective): what each micro-batch of this rank carries through the network.

    The engine averages gradients over micro-batches and workers; the loss is one of the whole batch. So its gradients
    are multiplied by the number of both.

    Args:
        parts: what is compared of each micro-batch of this rank.
        factor: on the logits.
        normalize: bring both sides to length one first.
    """
    own_RSC = torch.cat([torch.cat([each.student_BPC, each.teacher_BC[:, None]], dim=1) for each in parts]).float()
    all_NSC, world = everywhere(own_RSC.detach()), dist.get_world_size()
    kept_N = _kept_everywhere(parts)
    *students, teacher_NC = all_NSC.unbind(1)
    found = [contrastive_gradients(each_NC, teacher_NC, factor, normalize, kept_N) for each_NC in students]
    losses, of_students, of_teacher = zip(*found, strict=True)
    gradient_NSC = torch.stack([*of_students, torch.stack(of_teacher).sum(0)], dim=1) * (len(parts) * world)
    own = gradient_NSC.chunk(world)[dist.get_rank()].chunk(len(parts))
    loss = torch.stack(losses).sum()
    return [Compared(loss, each_BSC[:, :-1], each_BSC[:, -1]) for each_BSC in own]


def carry(sides: Sides, compared: Compared) -> Tensor:
    """Step 3: the loss over the global batch, with its gradients to this micro-batch's vectors."""
    pairs = (sides.student_BPC, compared.student_gradient_BPC), (sides.teacher_BC, compared.teacher_gradient_BC)
    return carry_gradients(compared.loss, *pairs)


def everywhere(rows_R: Tensor) -> Tensor:
    """The rows of all workers, in their order (a collective), without gradients."""
    found = [torch.empty_like(rows_R) for _ in range(dist.get_world_size())]
    dist.all_gather(found, rows_R.contiguous())
    return torch.cat(found)


def _kept_everywhere(parts: Sequence[Sides]) -> Tensor | None:
    left_out = [each.left_out_B for each in parts if each.left_out_B is not None]
    return None if not left_out else everywhere(torch.cat(left_out).logical_not())
