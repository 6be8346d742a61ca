"""Which tokenizers and generators there are: the one place where the config's `kind` is looked up.

A family of somebody else's joins by an entry point of the group "foldtrain.families", whose object is a
`TokenizerFamily` or a `GeneratorFamily` (docs/extending.md). Imports no torch: networks are named, and imported when
they are built.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, cast

from model.config import (
    GeneratorConfig,
    ImageFolderConfig,
    MaskgitVqganConfig,
    NextScaleConfig,
    NextTokenConfig,
    QuantizerConfig,
    TokenizerConfig,
    VqganConfig,
)
from model.config.discriminators import DiscriminatorConfig, discriminator_families
from model.config.losses import PerceptualConfig, perceptual_families
from model.config.masked import MaskedConfig
from model.config.quantizers import quantizer_families
from model.config.random_order import RandomOrderConfig
from model.config.registered import choice_of, joined, kind_of, named
from model.config.titok import TiTokConfig
from model.layout import TokenLayout

if TYPE_CHECKING:
    from model.protocols import (
        Discriminator,
        FeatureTeacher,
        Generator,
        Near,
        Perceptual,
        Quantizer,
        TeacherForcing,
        Tokenizer,
    )

GROUP = "foldtrain.families"
"""Of the entry points by which installed packages add families."""


@dataclass(frozen=True)
class TokenizerFamily:
    """Tokenizers of one kind."""

    config: type[TokenizerConfig]
    """What can be set of them. The default of its `kind` is the family's name."""
    network: str
    """"module:class" of the `Tokenizer`, which is made from a config."""
    forcing: str | None = None
    """"module:class" of the part that is a `TeacherForcing`, made from a config; None if there is none."""
    forcing_prefix: str = ""
    """What the names of that part's parameters begin with in the tokenizer."""


@dataclass(frozen=True)
class GeneratorFamily:
    """Generators of one kind."""

    config: type[GeneratorConfig]
    """What can be set of them. The default of its `kind` is the family's name."""
    network: str
    """"module:class" of the `Generator`, made from a config, a layout, and `TeacherForcing.width` or None."""


Family = TokenizerFamily | GeneratorFamily

_OWN: tuple[Family, ...] = (
    TokenizerFamily(
        config=ImageFolderConfig,
        network="model.tokenizers.imagefolder:ImageFolderTokenizer",
        forcing="model.quantizers.multi_scale:FoldedQuantizer",
        forcing_prefix="quantizer.",
    ),
    TokenizerFamily(
        config=VqganConfig,
        network="model.tokenizers.vqgan:ConvolutionalTokenizer",
        forcing="model.quantizers.multi_scale:FoldedQuantizer",
        forcing_prefix="quantizer.",
    ),
    TokenizerFamily(
        config=MaskgitVqganConfig,
        network="model.tokenizers.maskgit_vqgan:MaskgitVqganTokenizer",
        forcing="model.quantizers.multi_scale:FoldedQuantizer",
        forcing_prefix="quantizer.",
    ),
    TokenizerFamily(config=TiTokConfig, network="model.tokenizers.titok:TiTokTokenizer"),
    GeneratorFamily(config=NextScaleConfig, network="model.generators.next_scale:FoldedGenerator"),
    GeneratorFamily(config=NextTokenConfig, network="model.generators.next_token:NextTokenGenerator"),
    GeneratorFamily(config=RandomOrderConfig, network="model.generators.random_order:RandomOrderGenerator"),
    GeneratorFamily(config=MaskedConfig, network="model.generators.masked:MaskedGenerator"),
)
"""The first of each sort is what a config without a kind means."""


@cache
def families() -> tuple[Family, ...]:
    """All families: foldtrain's own, then those of installed packages.

    Raises:
        ValueError: if an entry point is no family, or two families have one name; it names the entry point.
    """
    return joined(_OWN, GROUP, (TokenizerFamily, GeneratorFamily))


def tokenizer_families() -> dict[str, TokenizerFamily]:
    """Tokenizers by kind."""
    return {kind_of(family): family for family in families() if isinstance(family, TokenizerFamily)}


def generator_families() -> dict[str, GeneratorFamily]:
    """Generators by kind."""
    return {kind_of(family): family for family in families() if isinstance(family, GeneratorFamily)}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """A quantizer of the config's kind, with new weights."""
    return cast("Quantizer", named(quantizer_families()[config.kind].network)(config))


def build_neighbours(quantizer: Quantizer, count: int) -> Near:
    """The nearest `count` codes of each code of a quantizer, itself the first of them.

    Raises:
        ValueError: if its kind has no neighbours, or it has fewer codes.
    """
    config = quantizer.config
    name = quantizer_families()[config.kind].neighbours
    if name is None:
        raise ValueError(f"a quantizer of kind {config.kind} does not say which codes are near to one another")
    if not 1 <= count <= config.vocabulary:
        raise ValueError(f"{count} nearest codes of {config.vocabulary}: give a number from 1 to that")
    return cast("Near", named(name)(quantizer, count))


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """A tokenizer of the config's kind, with new weights."""
    return cast("Tokenizer", named(tokenizer_families()[config.kind].network)(config))


def build_forcing(config: TokenizerConfig) -> TeacherForcing | None:
    """The part of a tokenizer that gives generators multi-scale sums, with new weights; None if it has none."""
    family = tokenizer_families()[config.kind]
    return None if family.forcing is None else cast("TeacherForcing", named(family.forcing)(config))


def build_generator(config: GeneratorConfig, layout: TokenLayout, forcing_width: int | None) -> Generator:
    """A generator of the config's kind, with new weights.

    Args:
        config: of it.
        layout: of the tokens that it is to predict.
        forcing_width: channels of what the tokenizer gives beside tokens (`TeacherForcing.width`); None for nothing.

    Raises:
        ValueError: if such a generator cannot predict such tokens; it says why.
    """
    config.check(layout, forcing_width)
    network = named(generator_families()[config.kind].network)
    if not config.unfold:
        return cast("Generator", network(config, layout, forcing_width))
    unfolded = named("model.generators.unfold:Unfolded")
    return cast("Generator", unfolded(network(config, layout.unfolded(), None), layout))


def build_discriminator(
    config: DiscriminatorConfig, image_size: int, teacher: FeatureTeacher | None = None
) -> Discriminator:
    """A discriminator of the config's kind, with new weights.

    Args:
        config: of it.
        image_size: side of the images that it judges, in pixels.
        teacher: of the run, for one that judges by its features (`DiscriminatorConfig.needs_teacher`).

    Raises:
        ValueError: if it cannot be made so; it says why.
    """
    return cast("Discriminator", named(discriminator_families()[config.kind].network)(config, image_size, teacher))


def build_perceptual(config: PerceptualConfig, teacher: FeatureTeacher | None = None) -> Perceptual:
    """A perceptual distance of the config's kind, frozen, with the weights of its file.

    Args:
        config: of it.
        teacher: of the run, for one that compares its features (`PerceptualConfig.needs_teacher`).

    Raises:
        ValueError: if a file is not given, not there, or not what it should be; it says which, and where to get it.
    """
    return cast("Perceptual", named(perceptual_families()[config.kind].network)(config, teacher))


def forcing_of(tokenizer: Tokenizer) -> TeacherForcing | None:
    """The part of a tokenizer that gives generators multi-scale sums; None if it has none."""
    family = tokenizer_families()[tokenizer.config.kind]
    return None if family.forcing is None else cast("TeacherForcing", attrgetter(family.forcing_prefix[:-1])(tokenizer))


if TYPE_CHECKING:
    AnyTokenizerConfig = TokenizerConfig
    AnyGeneratorConfig = GeneratorConfig
else:
    AnyTokenizerConfig = choice_of(family.config for family in tokenizer_families().values())
    AnyGeneratorConfig = choice_of(family.config for family in generator_families().values())
