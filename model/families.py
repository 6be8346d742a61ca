"""Which tokenizers and generators there are: the one place where the config's `kind` is looked up.

A family of somebody else's joins by an entry point of the group "foldtrain.families", whose object is a
`TokenizerFamily` or a `GeneratorFamily` (docs/extending.md). Imports no torch: networks are named, and imported when
they are built.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Union, cast

from pydantic import BaseModel, Discriminator, Tag

from model.config import GeneratorConfig, ImageFolderConfig, NextScaleConfig, TokenizerConfig
from model.layout import TokenLayout

if TYPE_CHECKING:
    from torch import nn

    from model.protocols import Generator, TeacherForcing, Tokenizer

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
    GeneratorFamily(config=NextScaleConfig, network="model.generators.next_scale:FoldedGenerator"),
)
"""The first of each sort is what a config without a kind means."""


def kind_of(family: Family) -> str:
    """The name of a family in the config."""
    return str(family.config.model_fields["kind"].default)


@cache
def families() -> tuple[Family, ...]:
    """All families: foldtrain's own, then those of installed packages.

    Raises:
        ValueError: if an entry point is no family, or two families have one name; it names the entry point.
    """
    found = list(_OWN)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        family = point.load()
        if not isinstance(family, TokenizerFamily | GeneratorFamily):
            raise ValueError(f"entry point {point.name} = {point.value} of {GROUP} is no family")  # noqa: TRY004
        if any(type(other) is type(family) and kind_of(other) == kind_of(family) for other in found):
            raise ValueError(f"entry point {point.name} = {point.value} of {GROUP}: {kind_of(family)} is there already")
        found.append(family)
    return tuple(found)


def tokenizer_families() -> dict[str, TokenizerFamily]:
    """Tokenizers by kind."""
    return {kind_of(family): family for family in families() if isinstance(family, TokenizerFamily)}


def generator_families() -> dict[str, GeneratorFamily]:
    """Generators by kind."""
    return {kind_of(family): family for family in families() if isinstance(family, GeneratorFamily)}


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """A tokenizer of the config's kind, with new weights."""
    return cast("Tokenizer", _named(tokenizer_families()[config.kind].network)(config))


def build_forcing(config: TokenizerConfig) -> TeacherForcing | None:
    """The part of a tokenizer that gives generators multi-scale sums, with new weights; None if it has none."""
    family = tokenizer_families()[config.kind]
    return None if family.forcing is None else cast("TeacherForcing", _named(family.forcing)(config))


def build_generator(config: GeneratorConfig, layout: TokenLayout, forcing_width: int | None) -> Generator:
    """A generator of the config's kind, with new weights.

    Args:
        config: of it.
        layout: of the tokens that it is to predict.
        forcing_width: channels of what the tokenizer gives beside tokens (`TeacherForcing.width`); None for nothing.

    Raises:
        ValueError: if such a generator cannot predict such tokens; it says why.
    """
    config.check_layout(layout, forcing_width)
    return cast("Generator", _named(generator_families()[config.kind].network)(config, layout, forcing_width))


def _named(name: str) -> type[nn.Module]:
    module, _, attribute = name.partition(":")
    return cast("type[nn.Module]", getattr(import_module(module), attribute))


def forcing_of(tokenizer: Tokenizer) -> TeacherForcing | None:
    """The part of a tokenizer that gives generators multi-scale sums; None if it has none."""
    family = tokenizer_families()[tokenizer.config.kind]
    return None if family.forcing is None else cast("TeacherForcing", attrgetter(family.forcing_prefix[:-1])(tokenizer))


def choice_of(sections: Iterable[type[BaseModel]]) -> Any:
    """The type of a config field that takes any of these sections, told apart by `kind`; the first if none is given."""
    kinds = {str(section.model_fields["kind"].default): section for section in sections}
    first, *others = kinds
    if not others:
        return kinds[first]

    def kind(value: Any) -> Any:
        found = value.get("kind", first) if isinstance(value, dict) else getattr(value, "kind", None)
        return found if isinstance(found, str) else first

    tagged = tuple(Annotated[section, Tag(name)] for name, section in kinds.items())
    return Annotated[Union[tagged], Discriminator(kind)]  # noqa: UP007 - a union of as many as there are


if TYPE_CHECKING:
    AnyTokenizerConfig = TokenizerConfig
    AnyGeneratorConfig = GeneratorConfig
else:
    AnyTokenizerConfig = choice_of(family.config for family in tokenizer_families().values())
    AnyGeneratorConfig = choice_of(family.config for family in generator_families().values())
