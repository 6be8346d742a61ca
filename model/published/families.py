"""Which published models can be imported: the one place where a family is chosen, by its options and names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from model.config import ImageFolderConfig
from model.generators.next_scale import FoldedGenerator
from model.published import imagefolder, var
from model.tokenizers.imagefolder import ImageFolderTokenizer

Options = Mapping[str, object]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class TokenizerFamily:
    """Published tokenizers of one kind."""

    name: str
    """As it is told to users."""
    recognizes: Callable[[Options, State], bool]
    """Whether options and parameters are of this family."""
    load: Callable[[Options, State], ImageFolderTokenizer]
    """Options and parameters to a tokenizer; ValueError names what does not fit."""


@dataclass(frozen=True)
class GeneratorFamily:
    """Published generators of one kind."""

    name: str
    """As it is told to users."""
    recognizes: Callable[[Options, State], bool]
    """Whether options and parameters are of this family."""
    load: Callable[[Options, State, ImageFolderConfig], FoldedGenerator]
    """The same with the config of the tokenizer whose tokens it predicts."""


Family = TokenizerFamily | GeneratorFamily


def _is_folded_var(config: Options, state: State) -> bool:
    return "folds" in config and {"word_embed.weight", "head.weight", "pos_1LC"} <= state.keys()


FAMILIES: tuple[Family, ...] = (
    TokenizerFamily("ImageFolder MSVR tokenizer", imagefolder.recognizes, imagefolder.load_tokenizer),
    GeneratorFamily("folded VAR generator", _is_folded_var, var.load_generator),
)


def find_family(config: Options, state: State) -> Family | None:
    """The family of a published model; None if it is not supported yet."""
    return next((family for family in FAMILIES if family.recognizes(config, state)), None)
