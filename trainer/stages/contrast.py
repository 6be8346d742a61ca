"""The contrastive loss over the global batch, however that is cut into micro-batches and over workers.

Every image is a negative of every other one, so the loss is no mean over micro-batches. Where a step has several, it is
computed as GradCache does (arXiv 2101.06983):

1. the network looks at each micro-batch without gradients, as far as what is compared (no decoder)
2. the vectors of all micro-batches and workers give the loss, and its gradients to this rank's vectors
3. each micro-batch carries the gradients of its own vectors through the network, in its ordinary pass

The second pass makes the same vectors as the first: the network draws by each sample's seed (random_numbers.py).

Shapes: B samples of a micro-batch, R of this rank, N of the global batch, C channels of a code, D of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor

from model.losses import carry_gradients, contrastive_gradients, contrastive_loss
from trainer.config import TokenizerLossConfig
from trainer.engine.deepspeed_engine import Batch
from trainer.stages.stage import Look

LOOK = "look"
"""Entry of a batch that asks for the compared vectors, `STUDENT` and `TEACHER` [B, C], and the teacher's `FEATURES`."""
STUDENT, TEACHER = "student", "teacher"
FEATURES = "features"
"""Of the teacher, [B, D]: also an entry of prepared batches, so that it sees each image once."""
VALUE, STUDENT_GRADIENT, TEACHER_GRADIENT = "semantic", "student_gradient", "teacher_gradient"
"""Entries of prepared batches: the loss, a scalar, and what its gradients to the batch's vectors are, [B, C]."""


def prepare(micro_batches: Sequence[Batch], look: Look, loss: TokenizerLossConfig) -> list[Batch]:
    """Steps 1 and 2 (a collective): the micro-batches with the entries that `compared` needs.

    The engine averages gradients over micro-batches and workers; the loss is one of the whole batch. So its gradients
    are multiplied by the number of both.
    """
    seen = [look(batch | {LOOK: torch.empty(0)}) for batch in micro_batches]
    rows = len(seen[0][STUDENT])
    sides_R2C = torch.cat([torch.stack([views[STUDENT], views[TEACHER]], dim=1) for views in seen]).float()
    world, rank = dist.get_world_size(), dist.get_rank()
    everywhere = [torch.empty_like(sides_R2C) for _ in range(world)]
    dist.all_gather(everywhere, sides_R2C.contiguous())
    student_NC, teacher_NC = torch.cat(everywhere).unbind(1)
    value, *gradients = contrastive_gradients(
        student_NC, teacher_NC, loss.semantic_temperature, loss.semantic_normalize
    )
    parts = len(micro_batches) * world
    own_student, own_teacher = (
        torch.split((gradient_NC * parts).chunk(world)[rank], rows) for gradient_NC in gradients
    )
    return [
        batch | {FEATURES: views[FEATURES], VALUE: value, STUDENT_GRADIENT: student_BC, TEACHER_GRADIENT: teacher_BC}
        for batch, views, student_BC, teacher_BC in zip(micro_batches, seen, own_student, own_teacher, strict=True)
    ]


def compared(batch: Batch, student_BC: Tensor, teacher_BC: Tensor, loss: TokenizerLossConfig) -> Tensor:
    """The contrastive loss over the global batch, with gradients to this micro-batch's vectors.

    Args:
        batch: from `prepare`, or the only one of this rank's step.
        student_BC: Spatial means of the semantic branch.
        teacher_BC: The teacher's features, projected.
        loss: Its settings.
    """
    if VALUE in batch:
        pairs = (student_BC, batch[STUDENT_GRADIENT]), (teacher_BC, batch[TEACHER_GRADIENT])
        return carry_gradients(batch[VALUE], *pairs)
    student_NC, teacher_NC = _everywhere(student_BC.float()), _everywhere(teacher_BC.float())
    return contrastive_loss(student_NC, teacher_NC, loss.semantic_temperature, loss.semantic_normalize)


def _everywhere(rows_BC: Tensor) -> Tensor:
    """Rows of all workers, [N, C]. Gathering with gradients sums what DeepSpeed then averages."""
    if dist.get_world_size() == 1:
        return rows_BC
    all_gather: Callable[[Tensor], tuple[Tensor, ...]] = torch.distributed.nn.all_gather
    return torch.cat(all_gather(rows_BC))
