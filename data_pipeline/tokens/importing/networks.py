"""Published networks become exports of ours, which a run takes as its inputs, or starts training from.

What is read are the published options, a JSON file, and a safetensors file. Files of torch.save are pickles, and are
not read. Which families there are, and how their names map to ours, is told by model.published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.halves import halves_of
from data_pipeline.shards.safetensors_header import check_safetensors
from data_pipeline.shards.tokenizers import tokenizer_config
from data_pipeline.shards.weights import Card
from model.config import TokenizerConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

OPTIONS = "config.json"
"""Beside the weights, unless it is elsewhere."""


def import_network(
    file: str, output: str, *, options: str | None = None, tokenizer: str | None = None, classes: Sequence[str] = ()
) -> Card:
    """Write the export of a published network.

    Args:
        file: its weights, a safetensors file at any URI.
        output: URI of the export; its kind follows from what the network is.
        options: its published options, JSON; config.json beside the weights if None.
        tokenizer: of a generator: URI of the export of the tokenizer whose tokens it predicts.
        classes: of a generator: names of its classes, by label.

    Returns:
        The card of the export.

    Raises:
        UsageError: if a file is missing or wrong, no family is recognized, or what was given does not fit.
    """
    from model.published.families import FAMILIES, PublishedTokenizer, find_family

    where = options or storage.join(file.rpartition("/")[0] or ".", OPTIONS)
    state, digest = _read_state(file)
    published = _read_options(where)
    family = find_family(published, state)
    if family is None:
        known = ", ".join(each.name for each in FAMILIES)
        raise UsageError(f"{file} with {where} is of no family that can be imported: there are {known}")
    lineage: dict[str, Any] = {"imported": family.name, "sha256": digest}
    try:
        if isinstance(family, PublishedTokenizer):
            network = family.load(published, state)
            config = network.config.without_pretraining().model_dump(mode="json")
            files = {"model": cast("nn.Module", network).state_dict()}
            return weights.write_weights(output, "tokenizer", config, files, lineage, halves=halves_of(network))
        card, speaks = _tokenizer_of(file, tokenizer)
        generator = family.load(published, state, speaks)
    except (ValueError, KeyError) as error:
        raise UsageError(f"{file}: {error}") from None
    if classes and len(classes) > generator.config.classes:
        raise UsageError(f"{len(classes)} names of classes, but {file} knows {generator.config.classes} classes")
    described: dict[str, Any] = {
        "generator": generator.config.model_dump(mode="json"),
        "layout": speaks.layout.to_json(),
    }
    described |= {"forcing_width": speaks.forcing_width}
    lineage |= {"tokenizer": card.encoder()}
    files = {"model": cast("nn.Module", generator).state_dict()}
    return weights.write_weights(output, "generator", described, files, lineage, classes=classes)


def _tokenizer_of(file: str, uri: str | None) -> tuple[Card, TokenizerConfig]:
    if uri is None:
        raise UsageError(
            f"{file} is a generator: import the tokenizer whose tokens it predicts, and name it: --tokenizer"
        )
    card = weights.read_card(uri, "tokenizer")
    return card, tokenizer_config(uri, card)


def _read_state(file: str) -> tuple[dict[str, Tensor], str]:
    """The parameters by their published names, and the sha256 of the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from model.published.containers import unwrap

    try:
        data = storage.read_bytes(file)
    except FileNotFoundError:
        raise UsageError(f"there is no file {file}: give the safetensors file of a published network") from None
    try:
        check_safetensors(data)
        return unwrap(load(data)), storage.sha256(data)
    except (ValueError, SafetensorError) as error:
        raise UsageError(
            f"{file} is no safetensors file ({error}); convert one of torch.save, which is a pickle, where you trust it"
        ) from None


def _read_options(file: str) -> dict[str, Any]:
    try:
        options = storage.read_json(file)
    except FileNotFoundError:
        raise UsageError(
            f"there is no file {file}: the published options tell what no shape does; give --config"
        ) from None
    if not isinstance(options, dict):
        raise UsageError(f"{file} holds no options, but {type(options).__name__}")
    return options
