"""Tokens of which some are those of near codes: what a decoder makes of them says how robust it is to a generator.

pFID, of ImageFolder's RobustTok, is the FID of such reconstructions. Its evaluation was never published; what is taken
from the published training (specified as: each token becomes with probability alpha a uniformly random one of its delta
nearest codes, itself among them) is said in docs/evaluation.md.

Imports no torch. Shapes: B images, L positions, F folds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UsageError
from data_pipeline.order.permutations import keyed_bits
from model.families import build_neighbours

if TYPE_CHECKING:
    from torch import Tensor

    from model.protocols import Near, Tokenizer

_STREAM = "perturbation"


@dataclass(frozen=True)
class TokenPerturbation:
    """How tokens are replaced.

    Raises:
        UsageError: if alpha is no share, or delta no number of codes.
    """

    alpha: float
    """Share of the tokens that become one of their nearest codes."""
    delta: int
    """Nearest codes from which that one is drawn, each as likely, the token's own among them: so alpha (1 - 1/delta) of
    the tokens change, and with 1 none does."""
    seed: int = 0
    """With the image's number it decides all that is drawn."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"perturbation: alpha {self.alpha:g} is a share of the tokens: give 0 to 1")
        if self.delta < 1:
            raise UsageError(
                f"perturbation: delta {self.delta} counts codes, the token's own among them: give 1 or more"
            )

    def to_json(self) -> dict[str, float | int]:
        """For a number's name."""
        return asdict(self)

    def of(self, tokenizer: Tokenizer) -> PerturbedTokens:
        """For the tokens of a tokenizer.

        Raises:
            UsageError: if it has none; or a quantizer of it has fewer codes, or none that are near to one another.
        """
        from model.protocols import Folded

        kind = tokenizer.config.kind
        if not tokenizer.config.has_tokens:
            raise UsageError(f"perturbation: this tokenizer of kind {kind} has a Gaussian bottleneck, and no tokens")
        if not isinstance(tokenizer, Folded):
            raise UsageError(f"perturbation: a tokenizer of kind {kind} does not say which quantizers its folds have")
        try:
            near = tuple(build_neighbours(each, self.delta) for each in tokenizer.fold_quantizers())
        except ValueError as error:
            raise UsageError(f"perturbation: {error}") from None
        return PerturbedTokens(self, near)


@dataclass(frozen=True)
class PerturbedTokens:
    """Replaces tokens; a function of each image's tokens and number alone."""

    strength: TokenPerturbation
    near: tuple[Near, ...]
    """Of each fold."""

    def __call__(self, tokens_BLF: Tensor, number_B: npt.NDArray[np.int64]) -> Tensor:
        """The tokens that are decoded, int64 [B, L, F].

        Args:
            tokens_BLF: the images' own.
            number_B: of each image among all.
        """
        import torch

        from model.layers.random_numbers import split_seed

        seed_B = torch.from_numpy(keyed_bits(self.strength.seed, _STREAM, number_B).view(np.int64))
        seeds = split_seed(seed_B.to(tokens_BLF.device), len(self.near))
        folds = zip(tokens_BLF.long().unbind(2), seeds, self.near, strict=True)
        return torch.stack([self._fold(*each) for each in folds], dim=2)

    def _fold(self, tokens_BL: Tensor, seed_B: Tensor, near: Near) -> Tensor:
        import torch

        from model.layers.random_numbers import uniform
        from model.losses.perturbation import Perturbation, chances_of

        strength = Perturbation(self.strength.alpha, self.strength.delta)
        chance_N = torch.from_numpy(chances_of(strength, strength.neighbours)).to(tokens_BL.device)
        number_BL = uniform(seed_B, tokens_BL.shape[1]).t().contiguous()
        rank_BL = torch.searchsorted(chance_N, number_BL, right=True)
        is_drawn_BL = rank_BL < strength.neighbours
        found_BL = tokens_BL.clone()
        found_BL[is_drawn_BL] = near(tokens_BL[is_drawn_BL], rank_BL[is_drawn_BL])
        return found_BL
