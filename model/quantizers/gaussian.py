"""A Gaussian bottleneck: latents that are drawn, and not looked up (arXiv 1312.6114).

Shapes: B batch, K latents, C channels of a latent.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from model.config.titok import GaussianConfig
from model.layers.precision import without_autocast
from model.layers.random_numbers import normal

LEAST_LOGVAR, MOST_LOGVAR = -30.0, 20.0
"""Log variances are clamped to these."""


class Gaussian(NamedTuple):
    """A normal distribution of each latent, its channels independent; float32."""

    mean_BKC: Tensor
    logvar_BKC: Tensor

    def sample(self, seed_B: Tensor) -> Tensor:
        """Latents [B, K, C] that follow from the samples' seeds alone, with gradients to mean and variance."""
        _, latents, channels = self.mean_BKC.shape
        noise_BKC = normal(seed_B, latents * channels).T.reshape(self.mean_BKC.shape)
        return self.mean_BKC + (0.5 * self.logvar_BKC).exp() * noise_BKC

    def divergence(self) -> Tensor:
        """From N(0, 1), of each latent [B, K]: (mean^2 + variance - 1 - log variance) / 2, summed over channels."""
        terms_BKC = self.mean_BKC.square() + self.logvar_BKC.exp() - 1 - self.logvar_BKC
        return terms_BKC.sum(2) / 2


def gaussian_of(vectors_BKC: Tensor) -> Gaussian:
    """The distribution that an encoder's vectors [B, K, 2 * C] stand for: means, then log variances, clamped."""
    with without_autocast(vectors_BKC.device):
        mean_BKC, logvar_BKC = vectors_BKC.float().chunk(2, dim=2)
        return Gaussian(mean_BKC, logvar_BKC.clamp(LEAST_LOGVAR, MOST_LOGVAR))


def divergence_loss(gaussian: Gaussian, config: GaussianConfig) -> Tensor:
    """Weighted divergence: a sum over an image's latents, a mean over images."""
    return config.divergence * gaussian.divergence().sum(1).mean()
