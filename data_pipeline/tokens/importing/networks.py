"""Published networks become exports of ours, which a run takes as its inputs, or starts training from.

1. weight_files.py finds the file, hashes it and maps it into memory, without running anything of it
2. the parameters are taken out of their container, without frozen teachers
3. model.published finds the family by names and shapes, and puts every parameter in its place; none may be missing,
       left over, of another shape, or infinite
4. the export is written: safetensors, and a card with the sha256 of the file that it came from
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.halves import halves_of
from data_pipeline.shards.manifest import first_problem
from data_pipeline.shards.tokenizers import tokenizer_config
from data_pipeline.shards.weights import Card
from data_pipeline.tokens.importing import torch_files
from data_pipeline.tokens.importing.weight_files import (
    OPTIONS,
    WeightFile,
    find_weights,
    open_weights,
    read_options,
)
from model.config import TokenizerConfig

if TYPE_CHECKING:
    from torch import nn

    from model.protocols import Generator, Tokenizer
    from model.published.containers import Held
    from model.published.families import Published


@dataclass(frozen=True)
class Wish:
    """How a file is to be understood, where its content leaves a choice or says nothing."""

    options: str | None = None
    """URI of the published options, JSON or YAML; None for those in the file, else config.json beside it."""
    kind: str | None = None
    """Which family to take it for (`kinds` in model/published/families.py); None recognizes it."""
    raw: bool = False
    """Take the weights as trained, where the file has their moving average, too."""
    tokenizer: str | None = None
    """Of a generator: URI of the export of the tokenizer whose tokens it predicts."""
    classes: Sequence[str] = ()
    """Of a generator: names of its classes, by label."""


@dataclass(frozen=True)
class Imported:
    """What became of a file."""

    card: Card
    """Of the export."""
    network: Tokenizer | Generator
    """With its weights, in float32 and eval mode."""
    found: str
    """What the file is and how it was read, in a line for people."""


def import_network(source: str, output: str, wish: Wish = Wish()) -> Imported:
    """Write the export of a published network.

    Args:
        source: its file of weights, or the folder that holds it, at any URI.
        output: URI of the export; its kind follows from what the network is.
        wish: how the file is to be understood.

    Raises:
        UsageError: if a file is missing or wrong, no family is recognized, or what was given does not fit. Nothing is
            written then.
    """
    file = find_weights(source)
    with open_weights(file) as held:
        options, place = _options(file, held, wish.options)
        try:
            return _import(held, options, place, output, wish)
        except ValidationError as error:
            raise UsageError(f"{file}: its sizes or options make no network ({first_problem(error)})") from None
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"{file}: {error}") from None
        except (ArithmeticError, LookupError) as error:  # sizes that follow from other sizes
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(f"{file}: its names and shapes make no network ({reason})") from None


def _import(file: WeightFile, options: dict[str, Any], place: str, output: str, wish: Wish) -> Imported:
    from model.published.families import PublishedTokenizer

    held, family = _recognized(file, options, wish)
    lineage: dict[str, Any] = {"imported": family.name, "sha256": file.sha256, "weights": held.place or "all"}
    lineage |= {"options": storage.fingerprint(options)} if options else {}
    found = _describe(file, held, family, place)
    if isinstance(family, PublishedTokenizer):
        tokenizer = family.load(options, held.tensors)
        config = tokenizer.config.without_pretraining().model_dump(mode="json")
        files = {"model": cast("nn.Module", tokenizer).state_dict()}
        card = weights.write_weights(output, "tokenizer", config, files, lineage, halves=halves_of(tokenizer))
        return Imported(card, tokenizer, found)
    spoken, speaks = _tokenizer_of(file.uri, wish.tokenizer)
    generator = family.load(options, held.tensors, speaks)
    classes = generator.config.classes
    if len(wish.classes) > classes:
        raise UsageError(f"{len(wish.classes)} names of classes, but {file.uri} knows {classes} classes")
    described: dict[str, Any] = {
        "generator": generator.config.model_dump(mode="json"),
        "layout": speaks.layout.to_json(),
        "forcing_width": speaks.forcing_width,
    }
    lineage |= {"tokenizer": spoken.encoder()}
    files = {"model": cast("nn.Module", generator).state_dict()}
    card = weights.write_weights(output, "generator", described, files, lineage, classes=wish.classes)
    return Imported(card, generator, found)


def _recognized(file: WeightFile, options: dict[str, Any], wish: Wish) -> tuple[Held, Published]:
    """The parameters, once they are found to be no larger than the file, and of a known family.

    A file that holds a generator and its tokenizer gives the generator, unless a kind of tokenizer is asked for.
    """
    from model.published.containers import unwrap
    from model.published.families import FAMILIES, PublishedTokenizer, find_family

    asked = find_family({}, {}, wish.kind) if wish.kind else None
    part = "tokenizer" if isinstance(asked, PublishedTokenizer) else "generator"
    held = unwrap(file.record, weights="raw" if wish.raw else "ema", part=part)  # type: ignore[arg-type]
    torch_files.check_sizes(held.tensors, file.size)
    family = find_family(options, held.tensors, wish.kind)
    if family is None:
        known = ", ".join(f"{each.name} ({'|'.join(each.kinds)})" for each in FAMILIES)
        raise ValueError(
            f"its {len(held.tensors)} tensors ({', '.join(sorted(held.tensors)[:3])}, …) are those of no family that "
            f"can be imported: there are {known}; --as takes it for one of them and says what does not fit"
        )
    return held, family


def _describe(file: WeightFile, held: Held, family: Published, place: str) -> str:
    """A line on what was found, what was taken and what was left."""
    from model.published.containers import RAW

    parts = [f"{file.uri}: {family.name}, {len(held.tensors)} tensors"]
    if held.place == "ema":
        parts.append("the moving average of its weights (ema; --raw takes those as trained)")
    elif held.place:
        parts.append(f"{'the weights as trained' if held.place in RAW else 'a part of it'} ({held.place})")
    if held.teachers:
        parts.append(f"{held.teachers} tensors of frozen teachers dropped")
    if held.beside:
        parts.append(f"left aside: {', '.join(held.beside[:8])}")
    return "; ".join([*parts, f"options: {place or 'none'}"])


def _tokenizer_of(file: str, uri: str | None) -> tuple[Card, TokenizerConfig]:
    if uri is None:
        raise UsageError(
            f"{file} is a generator: import the tokenizer whose tokens it predicts, and name it: --tokenizer"
        )
    card = weights.read_card(uri, "tokenizer")
    return card, tokenizer_config(uri, card)


def _options(file: str, held: WeightFile, asked: str | None) -> tuple[dict[str, Any], str]:
    """The published options, and where they were: those that were asked for, those in the file, those beside it."""
    if asked is None and held.options:
        return held.options, "in the file"
    where = asked or storage.join(file.rpartition("/")[0] or ".", OPTIONS)
    try:
        return read_options(where), where
    except FileNotFoundError:
        if asked is None:
            return {}, ""
        raise UsageError(f"there is no file {where}: --config names the published options") from None
