"""What tokenizers, quantizers and generators are to everything that trains, stores and uses them.

Shape suffixes: B batch, C channels, H = W side of the image in pixels, L positions (K of one group), F folds,
V codes of a fold, G groups, D width of a teacher's features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import GeneratorConfig, QuantizerConfig, TokenizerConfig
from model.config.sampling import GuidanceSchedule, OrderOptions
from model.layout import TokenLayout

Terms = dict[str, Tensor]
"""Scalars of a training pass by name, one of them "loss", which is minimized."""
Uniform = Callable[[str, npt.NDArray[np.int64]], npt.NDArray[np.float64]]
"""Numbers of [0, 1) by the name of their purpose and the samples' positions in the order of training."""


@dataclass(frozen=True)
class Draws:
    """What a tokenizer draws for a training step, beside what follows from each sample's seed."""

    of_sample: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """A row per sample of this rank."""
    of_step: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """The same for all samples of the step, over all ranks."""


class TokenizerOutput(NamedTuple):
    """What a training pass of a tokenizer gives to its losses."""

    reconstruction_BCHW: Tensor
    """The image from the quantized latent, not clamped; of no samples where decoding was left out."""
    tokens_BLF: Tensor
    """Token ids, int64."""
    losses: Terms
    """What is minimized beside the reconstruction's error, weighted: codebook, commitment, entropy."""
    branch_BPC: Tensor | None
    """Means over the positions of each branch's quantized latent (straight-through), float32: what is compared with a
    teacher's features. None for kinds that are not (`TokenizerConfig.compares`)."""
    hits: Terms
    """Times that each code was chosen, int64 [G, V], by the name of the parameter that is the codebook."""
    seen: Terms
    """What codes were looked up for, float32 [N, C], detached, by the name of the parameter that is the codebook."""
    means: Terms
    """Means over the samples that `losses_of_means` needs over the global batch, with gradients, float32.

    Terms of quantizer dropout are weighted such that the mean over micro-batches and workers is the global mean."""


class Tokenizer(Protocol):
    """Images to tokens and back; an `nn.Module`."""

    ENCODES: ClassVar[tuple[str, ...]]
    """Prefixes of the parameters that tokens follow from."""
    DECODES: ClassVar[tuple[str, ...]]
    """Prefixes of the parameters that images follow from, given tokens.

    What only training has, parameters and settings, is named in NEITHER, if there is any: a parameter that none of the
    three names is refused when the tokenizer is exported."""

    @property
    def config(self) -> TokenizerConfig:
        """What rebuilds it."""
        ...

    @property
    def layout(self) -> TokenLayout:
        """Of its tokens."""
        ...

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Numbers of leading positions from which an image can be decoded, ascending; the last is all."""
        ...

    @property
    def last_layer(self) -> str:
        """Name of the last parameter before the pixels: the adaptive adversarial weight compares gradients there."""
        ...

    @property
    def codebooks(self) -> dict[str, tuple[int, int]]:
        """Groups in which a code is looked for, and codes, by the name of the parameter that is the codebook."""
        ...

    def tokenize(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> token ids [B, L, F], int64."""
        ...

    def detokenize(self, tokens_BLF: Tensor, keep: int | None = None) -> Tensor:
        """Tokens -> images clamped to [-1, 1], float32; of the first `keep` positions alone, one of `prefixes`."""
        ...

    def draw(
        self, uniform: Uniform, positions_B: npt.NDArray[np.int64], step_positions: npt.NDArray[np.int64]
    ) -> Draws:
        """What a training step draws.

        Args:
            uniform: the run's random numbers.
            positions_B: of this rank's samples.
            step_positions: of all samples of the step.
        """
        ...

    def __call__(
        self, image_BCHW: Tensor, drawn: Mapping[str, Tensor], seed_B: Tensor | None = None, *, decode: bool = True
    ) -> TokenizerOutput:
        """One training pass. `drawn` is what `draw` gave; random masks follow from `seed_B`, a number per sample."""
        ...

    def project_teacher(self, feature_BD: Tensor) -> Tensor:
        """A teacher's features -> [B, C], compared with a branch of `branch_BPC`; gradients reach the projection."""
        ...

    def losses_of_means(self, means: Terms) -> Terms:
        """What is minimized of `TokenizerOutput.means` over the global batch, weighted; a pure function of them.

        No mean over micro-batches would do: the entropy of the mean is not the mean of entropies.
        """
        ...

    def no_decay_parameters(self) -> set[str]:
        """Names of the parameters without weight decay, besides all vectors."""
        ...


class Reconstructing(Protocol):
    """What a tokenizer is besides that has no tokens (`TokenizerConfig.has_tokens`)."""

    def reconstruct(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] -> what is left of them, clamped to [-1, 1], float32.

        Args:
            image_BCHW: the images.
            seed_B: int64, a random number per sample from which latents are drawn; None takes their means.
        """
        ...


@runtime_checkable
class Folded(Protocol):
    """What a tokenizer is besides whose folds can be told to have other codes."""

    def fold_quantizers(self) -> tuple[Quantizer, ...]:
        """The quantizer of each fold."""
        ...


@runtime_checkable
class Pooled(Protocol):
    """What a tokenizer is besides whose quantized latents have a mean that a linear layer can look at."""

    def pooled(self, tokens_BLF: Tensor) -> Tensor:
        """Tokens -> means over positions of each branch's quantized latent, [B, P, C], float32.

        Of several scales: of their sum, on the latent grid. Of latents in a row: of their codes.
        """
        ...


class ProxyTaught(Protocol):
    """What a tokenizer is besides whose training needs a proxy (`TokenizerConfig.needs_proxy`)."""

    def adopt(self, proxy: Tokenizer) -> None:
        """Take over what it has a place for of the proxy, which `TokenizerConfig.check_proxy` has let pass."""
        ...


Search = Callable[[Tensor], Tensor]
"""Projected vectors [B, K, C], float32 -> the ids of their codes [B, K], int64, without gradients."""


Near = Callable[[Tensor, Tensor], Tensor]
"""Ids [N], and ranks [N] from 0, which is the id's own -> the ids of the codes so near to them, int64 [N]."""


class SoftAssignment(Protocol):
    """Each vector's share in each code: what an entropy term looks at."""

    @property
    def entropy_weight(self) -> float:
        """Of the term: mean entropy of the vectors' shares, minus the entropy of the mean share."""
        ...

    @property
    def entropy_of_cells(self) -> bool:
        """In several scales: shares of what is looked up, or else of all positions of the latent grid."""
        ...

    def shares(self, vector_BKC: Tensor) -> Tensor:
        """Vectors -> [B, K, N], with gradients: the probabilities of N codes, or of N bits that a code is made of."""
        ...

    def entropy(self, share_N: Tensor) -> Tensor:
        """Entropy of shares, over the last axis."""
        ...


class Quantizer(Protocol):
    """Vectors to codes and back, one by one, in float32; an `nn.Module`, made from a `QuantizerConfig`."""

    CODEBOOK: ClassVar[str | None]
    """Name of the parameter with a row for each code; None where codes are fixed."""

    @property
    def config(self) -> QuantizerConfig:
        """What rebuilds it."""
        ...

    @property
    def soft(self) -> SoftAssignment | None:
        """What the entropy term needs; None without one."""
        ...

    def project(self, vector_BKC: Tensor) -> Tensor:
        """What is looked up, and replaced by its code: the vector itself, at length one, or bounded; with gradients."""
        ...

    def search(self) -> Search:
        """The look-up in the codes as they are now: kept for one pass, so that tables are made once."""
        ...

    def codes(self, tokens_BK: Tensor) -> Tensor:
        """Ids -> codes [B, K, C], float32, with gradients to what is learned of them."""
        ...


class Discriminator(Protocol):
    """Tells real images from made ones; an `nn.Module`.

    What moves in it beside parameters is in its buffers. A frozen network by whose features it judges is neither in its
    parameters nor in its state.
    """

    def __call__(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] -> logits [B, N], float32, larger for what looks real.

        What is random in training follows from `seed_B`, a number per sample: give real and made images their own.
        """
        ...


class Perceptual(Protocol):
    """A distance of images that is nearer to people's than that of pixels; an `nn.Module`, frozen."""

    def __call__(self, image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> a distance for each pair, [B], float32, with gradients to both."""
        ...


class FeatureTeacher(Protocol):
    """A frozen network whose features a discriminator judges by, or a loss compares; an `nn.Module`."""

    @property
    def size(self) -> int:
        """Side of the images that it was made for, in pixels. It takes others, too."""
        ...

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> features of the whole image [B, D]: the class token, or a mean."""
        ...

    def patch_features(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> the mean of the features of all patches [B, D]."""
        ...

    def maps(self, image_BCHW: Tensor, count: int) -> list[Tensor]:
        """Images in [-1, 1] -> features at `count` depths or fewer, shallow to deep, each [B, D, positions]."""
        ...

    def map_widths(self, count: int) -> list[int]:
        """Channels of each of `maps`."""
        ...


class TeacherForcing(Protocol):
    """Multi-scale sums: what next-scale generators see of the tokens of earlier groups; an `nn.Module`, frozen."""

    @property
    def layout(self) -> TokenLayout:
        """Of the tokens."""
        ...

    @property
    def width(self) -> int:
        """Channels of what a generator sees."""
        ...

    def generator_input(self, tokens_BLF: Tensor) -> Tensor:
        """The sums before each group but the first, [B, positions after the first group, width], float32."""
        ...

    def empty_latent(self, batch: int, device: torch.device) -> Tensor:
        """The sum before the first group."""
        ...

    def next_scale(self, latent: Tensor, tokens_BKF: Tensor, group: int) -> tuple[Tensor, Tensor | None]:
        """Add the tokens of a group: the new sum, and what a generator sees of it before the next; None at the end."""
        ...


@dataclass(frozen=True)
class SamplingPlan:
    """What is to be drawn, and how."""

    condition_B: Tensor
    """Classes, int64."""
    uniform_BLF: Tensor
    """A number of [0, 1) for each token; equal numbers, and seeds, give equal images."""
    guidance: float = 0.0
    """Classifier-free guidance g: logits c + g (c - u), with the class and without; 0 leaves the latter out."""
    top_k: int = 0
    """Draw from the k likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that hold this much probability."""
    kept_BLF: Tensor | None = None
    """Tokens to keep as they are; those that are negative are drawn. None draws all."""
    schedule: GuidanceSchedule | None = None
    """Guidance over the way; None for the order's own (`GeneratorConfig.guidance_schedule`)."""
    temperature: float = 1.0
    """What logits are divided by, after guidance and before top-k; small ones draw the likeliest tokens."""
    seed_B: Tensor | None = None
    """int64, a random number per image, for orders that draw more often than once for each token."""
    order: OrderOptions | None = None
    """What can be set of this order alone (`GeneratorConfig.order_options`); None for its defaults."""


class Generator(Protocol):
    """Predicts tokens in some order; an `nn.Module`."""

    @property
    def config(self) -> GeneratorConfig:
        """What rebuilds it, beside the layout."""
        ...

    @property
    def layout(self) -> TokenLayout:
        """Of its tokens."""
        ...

    @property
    def null_class(self) -> int:
        """The condition that means "no class"."""
        ...

    def training_terms(
        self, tokens_BLF: Tensor, condition_B: Tensor, seed_B: Tensor | None, forcing: TeacherForcing | None
    ) -> Terms:
        """What it minimizes, and what is worth a look beside it.

        Parameters are used within `forward` of this module or of those below it: ZeRO 3 gathers them there.

        Args:
            tokens_BLF: true tokens, int64.
            condition_B: classes; `null_class` where the class is hidden.
            seed_B: a number per sample that random masks and orders follow from.
            forcing: of the tokenizer; None for kinds that look at ids alone.
        """
        ...

    def sample(self, plan: SamplingPlan, forcing: TeacherForcing | None) -> Tensor:
        """Draw tokens [B, L, F], int64. In eval mode, without gradients.

        Raises:
            ValueError: if the plan's shapes do not fit, or the generator is in training mode.
        """
        ...

    def no_decay_parameters(self) -> set[str]:
        """Names of the parameters without weight decay, besides all vectors."""
        ...


class StepTaught(Protocol):
    """What a generator is besides whose training needs to know of the whole step (`GeneratorConfig.needs_step`).

    A mean that is weighted over the samples of a step, or a chance that changes from step to step, is then the same in
    whatever micro-batches and on however many workers the step is computed.
    """

    def of_step(self, step: int, seed_S: Tensor) -> dict[str, Tensor]:
        """What `training_terms` is given of a step, by name; on the host, from any thread.

        Args:
            step: from 0.
            seed_S: int64 [S], the seeds of all samples of the step, over all workers, on the host.
        """
        ...

    def training_terms(
        self,
        tokens_BLF: Tensor,
        condition_B: Tensor,
        seed_B: Tensor | None,
        forcing: TeacherForcing | None,
        of_step: Mapping[str, Tensor] | None = None,
    ) -> Terms:
        """As `Generator.training_terms`. Without `of_step` the samples are taken for a whole step."""
        ...
