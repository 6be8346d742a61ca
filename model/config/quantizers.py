"""What can be set of quantizers, and which there are: the one place where a quantizer's `kind` is looked up.

A quantizer turns vectors into codes, one by one; how many branches and scales of it a tokenizer has is the tokenizer's.
One of somebody else's joins by an entry point of the group "foldtrain.quantizers", whose object is a `QuantizerFamily`,
in a module that imports nothing of foldtrain but this one (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

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


class VectorConfig(QuantizerConfig):
    """Vector quantization: the code of a learned codebook that is nearest."""

    kind: Literal["vq"] = "vq"
    """Kind of the quantizer."""
    codebook_size: int = Field(4096, gt=1, le=2**24)
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


@dataclass(frozen=True)
class QuantizerFamily:
    """Quantizers of one kind."""

    config: type[QuantizerConfig]
    """What can be set of them. The default of its `kind` is the family's name."""
    network: str
    """"module:class" of the `Quantizer`, which is made from a config."""


_OWN = (QuantizerFamily(VectorConfig, network="model.quantizers.vector:VectorQuantizer"),)
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
