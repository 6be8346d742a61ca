"""What a tokenizer and its discriminator minimize of each other.

Shapes: B images, N logits of an image.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

AdversarialLoss = Literal["hinge", "non-saturating"]


def discriminator_loss(real_BN: Tensor, made_BN: Tensor, loss: AdversarialLoss = "hinge") -> Tensor:
    """Half the sum of the mean losses on real images and on made ones.

    Hinge (arXiv 1705.02894): max(0, 1 - logit) of a real image, max(0, 1 + logit) of a made one. Non-saturating (arXiv
    1406.2661): the binary cross entropy, log(1 + exp(-logit)) and log(1 + exp(logit)).
    """
    real_BN, made_BN = real_BN.float(), made_BN.float()
    if loss == "hinge":
        return (F.relu(1 - real_BN).mean() + F.relu(1 + made_BN).mean()) / 2
    return (F.softplus(-real_BN).mean() + F.softplus(made_BN).mean()) / 2


def generator_loss(made_BN: Tensor, loss: AdversarialLoss = "hinge") -> Tensor:
    """What makes made images look real: minus the mean logit, or the cross entropy with "real"."""
    made_BN = made_BN.float()
    return -made_BN.mean() if loss == "hinge" else F.softplus(-made_BN).mean()


def adaptive_weight(reference_norm: Tensor, adversarial_norm: Tensor, most: float = 1e4, eps: float = 1e-4) -> Tensor:
    """Factor on the adversarial term that makes it pull as strongly as the reconstruction does (arXiv 2012.09841).

    Args:
        reference_norm: of the gradient that the weighted reconstruction and perceptual terms have at the last layer, a
            mean over the whole global batch.
        adversarial_norm: of the gradient that the unweighted adversarial term has there.
        most: largest factor.
        eps: added to the divisor.

    Returns:
        A scalar without gradient, float32.
    """
    ratio = reference_norm.detach().float() / (adversarial_norm.detach().float() + eps)
    return ratio.clamp(0.0, most)


def gradient_penalty(real_BN: Tensor, image_BCHW: Tensor) -> Tensor:
    """R1 (arXiv 1801.04406): squared norm of the gradient of a real image's logits, their mean, to its pixels.

    Args:
        real_BN: logits, from `image_BCHW`.
        image_BCHW: real images that require a gradient.

    Returns:
        The mean over images, with a gradient to what made the logits.
    """
    # The mean over an image's logits: those of a patch discriminator are many, and each is a verdict of its own.
    (gradient_BCHW,) = torch.autograd.grad(real_BN.float().mean(1).sum(), image_BCHW, create_graph=True)
    return gradient_BCHW.float().square().sum((1, 2, 3)).mean()
