"""Which published models can be imported: the one place where a family is chosen, by names and shapes of its tensors.

A family is one entry: how it is called, whether tensors are its own, and what makes a network of ours of them. Its
module holds its names; model/published/fitting.py puts tensors in their places and says what does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from model.config import TokenizerConfig
from model.protocols import Generator, Tokenizer
from model.published import imagefolder, llamagen, maskgit, maskgit_vqgan, rar, titok, var, var_vqvae, vqgan
from model.published.options import Options

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class PublishedTokenizer:
    """Published tokenizers of one kind."""

    name: str
    """As people are told: the paper's or its code's name."""
    kinds: tuple[str, ...]
    """By which it can be asked for (`--as`), lower case, words joined by "-"; no other family has one of them."""
    recognizes: Callable[[Options, State], bool]
    """Whether parameters are of this family. Their names and shapes decide; options, which may be empty, only where
    two families have the same."""
    load: Callable[[Options, State], Tokenizer]
    """Options and parameters to a tokenizer in float32 and eval mode, which may share their memory. ValueError names
    parameters that do not fit, and options that no shape tells and that are absent."""


@dataclass(frozen=True)
class PublishedGenerator:
    """Published generators of one kind."""

    name: str
    """As people are told."""
    kinds: tuple[str, ...]
    """By which it can be asked for."""
    recognizes: Callable[[Options, State], bool]
    """Whether parameters are of this family."""
    load: Callable[[Options, State, TokenizerConfig], Generator]
    """The same with the config of the tokenizer whose tokens it predicts."""


Published = PublishedTokenizer | PublishedGenerator

FAMILIES: tuple[Published, ...] = (
    PublishedTokenizer(
        "ImageFolder MSVR tokenizer", ("msvr",), imagefolder.recognizes_msvr, imagefolder.load_tokenizer
    ),
    PublishedTokenizer(
        "ImageFolder MSBR tokenizer", ("msbr",), imagefolder.recognizes_msbr, imagefolder.load_tokenizer
    ),
    PublishedTokenizer(
        "ImageFolder VQ tokenizer", ("vp2", "vit-vq"), imagefolder.recognizes_vq, imagefolder.load_tokenizer
    ),
    PublishedTokenizer("TiTok", ("titok",), titok.recognizes, titok.load_tokenizer),
    PublishedTokenizer(
        "VQ-GAN of LlamaGen or XQ-GAN", ("vqgan", "llamagen-vq"), vqgan.recognizes, vqgan.load_tokenizer
    ),
    PublishedTokenizer("VAR tokenizer", ("var-vqvae",), var_vqvae.recognizes, var_vqvae.load_tokenizer),
    PublishedTokenizer("MaskGIT-VQGAN", ("maskgit-vqgan",), maskgit_vqgan.recognizes, maskgit_vqgan.load_tokenizer),
    PublishedGenerator("VAR generator", ("var", "folded-var"), var.recognizes, var.load_generator),
    PublishedGenerator("LlamaGen generator", ("llamagen",), llamagen.recognizes, llamagen.load_generator),
    PublishedGenerator("RAR generator", ("rar",), rar.recognizes, rar.load_generator),
    PublishedGenerator(
        "masked generator of TiTok with BERT", ("maskgit-bert",), maskgit.recognizes_bert, maskgit.load_bert
    ),
    PublishedGenerator(
        "masked generator of TiTok with U-ViT", ("maskgit-uvit",), maskgit.recognizes_uvit, maskgit.load_uvit
    ),
)


def find_family(options: Options, state: State, kind: str | None = None) -> Published | None:
    """The family of a published model; None if it is of none that is known.

    Args:
        options: the published ones; empty where there are none.
        state: the published parameters.
        kind: which family to take, whatever the parameters look like (one of its `kinds`).

    Raises:
        ValueError: if there is no such kind, or several families take the parameters for theirs.
    """
    if kind is not None:
        asked = next((family for family in FAMILIES if kind in family.kinds), None)
        if asked is None:
            raise ValueError(f"there is no kind {kind}: there are {', '.join(_kinds(FAMILIES))}")
        return asked
    found = tuple(family for family in FAMILIES if family.recognizes(options, state))
    if len(found) > 1:
        raise ValueError(
            f"could be {' or '.join(each.name for each in found)}: say which (--as {'|'.join(_kinds(found))})"
        )
    return found[0] if found else None


def _kinds(families: tuple[Published, ...]) -> list[str]:
    return [kind for family in families for kind in family.kinds]
