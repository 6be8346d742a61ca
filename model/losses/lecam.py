"""LeCam regularization of a discriminator (arXiv 2104.03310): logits are held to moving averages of the other side's.

Both averages are of the global batch, in one tensor: of real images' mean logit, then of made ones'. They begin at 0.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def lecam_loss(real: Tensor, made: Tensor, averages_2: Tensor) -> Tensor:
    """Squares of how far real logits are above the made ones' average, and made ones below the real ones'.

    Args:
        real: logits of real images: all of them (ImageFolder's form; their mean is taken after the square), or their
            mean over the global batch, a scalar (TiTok's form, which is no mean over micro-batches).
        made: of made images, likewise.
        averages_2: as they are used in this step (`averages_of_step`).
    """
    average_real, average_made = averages_2.float().unbind()
    above, below = real.float() - average_made, average_real - made.float()
    return F.relu(above).square().mean() + F.relu(below).square().mean()


def averages_of_step(
    averages_2: Tensor, mean_2: Tensor, decay: float = 0.999, update: Literal["before", "after"] = "before"
) -> tuple[Tensor, Tensor]:
    """The averages that a step of the discriminator uses, and those that it leaves.

    Args:
        averages_2: as the step before left them.
        mean_2: the step's mean logits over the global batch, of real images and of made ones.
        decay: of the averages.
        update: `before` they are used (ImageFolder), or `after` (TiTok).
    """
    mean_2 = mean_2.detach().float()
    moved_2 = decay * averages_2 + (1 - decay) * mean_2
    # What is not finite would stay for ever; such a step is skipped.
    moved_2 = torch.where(mean_2.isfinite().all(), moved_2, averages_2)
    return (moved_2 if update == "before" else averages_2), moved_2
