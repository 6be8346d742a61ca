"""What can be set of quantizers, and which there are: the one place where a quantizer's `kind` is looked up.

A quantizer turns vectors into codes, one by one; how many branches and scales of it a tokenizer has is the tokenizer's.
One of somebody else's joins by an entry point of the group "foldtrain.quantizers", whose object is a `QuantizerFamily`,
in a module that imports nothing of foldtrain but this one (docs/extending.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.config.registered import choice_of, joined, kind_of
from model.config.section import Section

GROUP = "foldtrain.quantizers"
"""Of the entry points by which installed packages add quantizers."""


class QuantizerConfig(Section):
    """What the configs of all quantizers have."""

    kind: str
    """Kind of the quantizer."""
    commitment: float = Field(0.25, ge=0)
    """Weight of the commitment loss, which moves latents to their codes."""

    @property
    def vocabulary(self) -> int:
        """Number of codes."""
        raise NotImplementedError(f"{type(self).__name__} has to say how many codes it has")

    @property
    def width(self) -> int:
        """Channels of a code."""
        raise NotImplementedError(f"{type(self).__name__} has to say how wide its codes are")


ONLY_TRAINING = ("commitment", "initialization", "entropy", "entropy_temperature", "entropy_positions")
"""Settings that tokens and images do not follow from."""
MOST_CODES = 2**24


class SoftConfig(QuantizerConfig):
    """Quantizers with an entropy term: each vector is to be near one code, and all of them to use all codes.

    It is the mean entropy of each vector's shares in the codes, minus the entropy of their mean over the global batch.
    """

    entropy: float = Field(0.0, ge=0)
    """Weight of the entropy term; 0 leaves it out."""
    entropy_temperature: float = Field(0.01, gt=0)
    """Shares are a softmax of minus the squared distance to each code over this."""
    entropy_positions: Literal["cells", "grid"] = "cells"
    """In several scales: the shares of what is looked up, or of every position of the latent grid (as published for
    BSQ), which takes more memory."""


class VectorConfig(SoftConfig):
    """Vector quantization: the code of a learned codebook that is nearest."""

    kind: Literal["vq"] = "vq"
    """Kind of the quantizer."""
    codebook_size: int = Field(4096, gt=1, le=MOST_CODES)
    """Codes of the codebook. Tokens are stored in 16 bits up to 65,536, in 32 above."""
    code_dim: int = Field(32, gt=0, le=65_536)
    """Channels of a code."""
    lookup: Literal["cosine", "euclidean"] = "cosine"
    """What "nearest" means: the largest cosine similarity, or the smallest distance. The same where `unit_codes`."""
    unit_codes: bool = False
    """Latents are compared, and codes put out, at length one: as published for one scale (VQ and VP2 of ImageFolder,
    LlamaGen, the legacy TiTok). The published codes of several scales are put out as they are."""
    initialization: Literal["sphere", "uniform"] = "sphere"
    """Codes of length one (ImageFolder, LlamaGen), or uniform from -1 to 1 over the number of codes (TiTok)."""

    @property
    def vocabulary(self) -> int:
        """Number of codes."""
        return self.codebook_size

    @property
    def width(self) -> int:
        """Channels of a code."""
        return self.code_dim


class BinaryConfig(SoftConfig):
    """Codes that are the signs of the channels, ids that are their bits."""

    unit_length: ClassVar[bool]
    """Whether latents and codes are of length one."""
    bits: int = Field(12, gt=0, le=24)
    """Channels of a code. There are 2 ** bits codes; the first channel is the lowest bit of an id."""
    entropy: float = Field(0.1, ge=0)
    """Weight of the entropy term, of each bit by itself; 0 leaves it out."""
    entropy_temperature: float = Field(1.0, gt=0)
    """Shares are a softmax of minus the squared distance to both values of a channel over this."""
    entropy_positions: Literal["cells", "grid"] = "grid"
    """In several scales: the shares of what is looked up, or of every position of the latent grid, as published."""

    @property
    def vocabulary(self) -> int:
        """Number of codes."""
        return int(2**self.bits)

    @property
    def width(self) -> int:
        """Channels of a code."""
        return self.bits

    @property
    def length(self) -> float:
        """Absolute value of each channel of a code."""
        return 1 / math.sqrt(self.bits) if self.unit_length else 1.0


class LookupFreeConfig(BinaryConfig):
    """Lookup-free quantization (LFQ, arXiv 2310.05737): each channel becomes 1 or -1."""

    kind: Literal["lfq"] = "lfq"
    """Kind of the quantizer."""
    unit_length: ClassVar[bool] = False


class SphericalConfig(BinaryConfig):
    """Binary spherical quantization (BSQ, arXiv 2406.07548): the same, with latents and codes of length one."""

    kind: Literal["bsq"] = "bsq"
    """Kind of the quantizer."""
    unit_length: ClassVar[bool] = True


class FiniteScalarConfig(QuantizerConfig):
    """Finite scalar quantization (FSQ, arXiv 2309.15505): each channel is rounded to one of a few levels."""

    kind: Literal["fsq"] = "fsq"
    """Kind of the quantizer."""
    levels: Annotated[tuple[Annotated[int, Field(gt=1, le=65_536)], ...], Field(min_length=1, max_length=64)] = (
        8,
        5,
        5,
        5,
    )
    """Of each channel: a code is one level of each, its id a number whose lowest digit is the first channel."""
    commitment: float = Field(0.0, ge=0)
    """Weight of the commitment loss, which the paper does without."""

    @model_validator(mode="after")
    def _check_codes(self) -> Self:
        if self.vocabulary > MOST_CODES:
            raise ValueError(
                f"levels {list(self.levels)} make {self.vocabulary} codes: at most {MOST_CODES} are possible"
            )
        return self

    @property
    def vocabulary(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    @property
    def width(self) -> int:
        """Channels of a code."""
        return len(self.levels)


@dataclass(frozen=True)
class QuantizerFamily:
    """Quantizers of one kind."""

    config: type[QuantizerConfig]
    """What can be set of them. The default of its `kind` is the family's name."""
    network: str
    """"module:class" of the `Quantizer`, which is made from a config."""
    neighbours: str | None = None
    """"module:function" that makes a `Near` of a quantizer and a number of codes; None where no codes are near to one
    another, so that an evaluation cannot perturb them."""


_NEAR = "model.quantizers.neighbours"
_OWN = (
    QuantizerFamily(VectorConfig, "model.quantizers.vector:VectorQuantizer", f"{_NEAR}:by_distance"),
    QuantizerFamily(LookupFreeConfig, "model.quantizers.binary:BinaryQuantizer", f"{_NEAR}:by_bits"),
    QuantizerFamily(SphericalConfig, "model.quantizers.binary:BinaryQuantizer", f"{_NEAR}:by_bits"),
    QuantizerFamily(FiniteScalarConfig, "model.quantizers.fsq:FiniteScalarQuantizer", f"{_NEAR}:by_steps"),
)
"""The first is what a config without a kind means."""


@cache
def quantizer_families() -> dict[str, QuantizerFamily]:
    """Quantizers by kind: foldtrain's own, then those of installed packages.

    Raises:
        ValueError: as `joined`.
    """
    return {kind_of(family): family for family in joined(_OWN, GROUP, (QuantizerFamily,))}


if TYPE_CHECKING:
    AnyQuantizerConfig = QuantizerConfig
else:
    AnyQuantizerConfig = choice_of(family.config for family in quantizer_families().values())
