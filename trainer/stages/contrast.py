"""The contrastive loss over the global batch, however that is cut into micro-batches and over workers.

Every image is a negative of every other one, so the loss is no mean over micro-batches. Where a step has several, it is
computed as GradCache does (arXiv 2101.06983):

1. each micro-batch passes through the network without gradients (a preview), as far as what is compared (no decoder)
2. the vectors of all micro-batches and workers give the loss, and its gradients to this rank's vectors
3. each micro-batch carries the gradients of its own vectors through the network, in its ordinary pass

The second pass makes the same vectors as the first: the network draws by each sample's seed (random_numbers.py).

Shapes: B samples of a micro-batch, R of this rank, N of the global batch, C channels of a code, D of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor

from model.losses.contrastive import carry_gradients, contrastive_gradients, contrastive_loss
from trainer.config import TokenizerLossConfig


class Seen(NamedTuple):
    """What a preview of a micro-batch gives."""

    student_BC: Tensor
    """Means of the semantic branch."""
    teacher_BC: Tensor
    """The teacher's features, projected."""
    features_BD: Tensor
    """The teacher's features."""


@dataclass(frozen=True)
class Compared:
    """What a micro-batch has to know of the comparison of all of them."""

    features_BD: Tensor
    """The teacher's, so that it sees each image once."""
    loss: Tensor
    """A scalar, over the global batch."""
    student_gradient_BC: Tensor
    """Of the loss to this micro-batch's vectors."""
    teacher_gradient_BC: Tensor


def compare(seen: Sequence[Seen], loss: TokenizerLossConfig) -> list[Compared]:
    """Step 2 (a collective): what each micro-batch of this rank carries through the network.

    The engine averages gradients over micro-batches and workers; the loss is one of the whole batch. So its gradients
    are multiplied by the number of both.
    """
    rows = len(seen[0].student_BC)
    sides_R2C = torch.cat([torch.stack([each.student_BC, each.teacher_BC], dim=1) for each in seen]).float()
    world, rank = dist.get_world_size(), dist.get_rank()
    everywhere = [torch.empty_like(sides_R2C) for _ in range(world)]
    dist.all_gather(everywhere, sides_R2C.contiguous())
    student_NC, teacher_NC = torch.cat(everywhere).unbind(1)
    value, *gradients = contrastive_gradients(
        student_NC, teacher_NC, loss.semantic_temperature, loss.semantic_normalize
    )
    parts = len(seen) * world
    own_student, own_teacher = (
        torch.split((gradient_NC * parts).chunk(world)[rank], rows) for gradient_NC in gradients
    )
    return [
        Compared(each.features_BD, value, student_BC, teacher_BC)
        for each, student_BC, teacher_BC in zip(seen, own_student, own_teacher, strict=True)
    ]


def semantic_loss(
    student_BC: Tensor, teacher_BC: Tensor, loss: TokenizerLossConfig, compared: Compared | None = None
) -> Tensor:
    """The contrastive loss over the global batch, with gradients to this micro-batch's vectors.

    Args:
        student_BC: Spatial means of the semantic branch.
        teacher_BC: The teacher's features, projected.
        loss: Its settings.
        compared: from `compare`; None for the only micro-batch of this rank's step (a collective then).
    """
    if compared is not None:
        pairs = (student_BC, compared.student_gradient_BC), (teacher_BC, compared.teacher_gradient_BC)
        return carry_gradients(compared.loss, *pairs)
    student_NC, teacher_NC = _everywhere(student_BC.float()), _everywhere(teacher_BC.float())
    return contrastive_loss(student_NC, teacher_NC, loss.semantic_temperature, loss.semantic_normalize)


def _everywhere(rows_BC: Tensor) -> Tensor:
    """Rows of all workers, [N, C]. Gathering with gradients sums what DeepSpeed then averages."""
    if dist.get_world_size() == 1:
        return rows_BC
    all_gather: Callable[[Tensor], tuple[Tensor, ...]] = torch.distributed.nn.all_gather
    return torch.cat(all_gather(rows_BC))
