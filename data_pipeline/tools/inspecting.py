"""What is in a data set: its schema, some samples, its labels, how its codebooks are used.

Shapes: N samples, W views, L positions, F folds, V codebook size, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Pixels, center_crop, decode
from data_pipeline.shards import weights
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ImageManifest, TokenManifest, read_manifest
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.token_shards import Tokens, check_tokenizer
from data_pipeline.shards.tokenizers import load_tokenizer
from data_pipeline.tools.in_order import in_order

_READS = 8
"""Shards whose keys and labels are read at a time."""
_ROWS = 2**18
MOST_PIXELS = 256
"""Largest side of an image of a grid."""


@dataclass(frozen=True)
class CodebookUse:
    """How one fold's codes are used in one group of positions."""

    fold: int
    group: int
    positions: int
    """Of the group."""
    share: float
    """Of the codes, those that occur."""
    perplexity: float
    """exp of the entropy of the codes: the number of codes, were they used evenly."""


@dataclass(frozen=True)
class Inspection:
    """What is in a data set."""

    schema: dict[str, Any]
    """Its manifest without the list of shards, and the numbers of shards and bytes."""
    samples: list[dict[str, Any]]
    """Key, label and class of the first few samples."""
    label_counts: dict[str, int]
    """Samples by class name."""
    codebook: list[CodebookUse]
    """Empty for images."""
    codebook_samples: int
    """Samples that `codebook` was counted over."""

    def to_json(self) -> dict[str, Any]:
        """As a record."""
        return asdict(self)


def inspect_data(uri: str, samples: int = 16, limit: int | None = None) -> Inspection:
    """Look at a data set of images or tokens.

    Args:
        uri: of the data set.
        samples: how many are listed.
        limit: count codes over whole shards, until there are so many samples; None for all of them.

    Raises:
        UsageError: if there is no complete data set.
        CorruptShardError: if a shard is damaged; it names shard and key.
    """
    manifest = read_manifest(uri)
    names = manifest.classes
    listed: list[dict[str, Any]] = []
    counts = np.zeros(len(names), np.int64)
    for keys, labels in _columns(uri, manifest):
        counts += np.bincount(labels, minlength=len(names))
        for key, label in zip(keys[: samples - len(listed)], labels, strict=False):
            name = bytes(key).decode(errors="replace")
            listed.append({"key": name, "label": int(label), "class": names[label]})
    codebook, counted = _codebook(uri, manifest, limit) if isinstance(manifest, TokenManifest) else ([], 0)
    by_class: dict[str, int] = {}
    for name, count in zip(names, counts, strict=True):
        by_class[name] = by_class.get(name, 0) + int(count)
    return Inspection(_schema(uri, manifest), listed, by_class, codebook, counted)


def _schema(uri: str, manifest: ImageManifest | TokenManifest) -> dict[str, Any]:
    record = {"uri": uri, **manifest.model_dump(mode="json")}
    shards = record.pop("shards")
    return record | {"classes": len(manifest.classes), "shards": shards["count"], "bytes": shards["bytes"]}


def _columns(
    uri: str, manifest: ImageManifest | TokenManifest
) -> Iterator[tuple[npt.NDArray[np.bytes_], npt.NDArray[Any]]]:
    """Keys and labels without images or tokens, some samples at a time."""
    if isinstance(manifest, ImageManifest):
        images = ImageShards(uri, manifest)
        for first in range(0, images.count, _ROWS):
            yield images.keys[first : first + _ROWS], images.labels[first : first + _ROWS]
        return
    reader = TokenReader(uri, manifest)
    for columns in in_order(reader.columns, range(len(manifest.shards)), _READS):
        yield columns.key, columns.condition


def _codebook(uri: str, manifest: TokenManifest, limit: int | None) -> tuple[list[CodebookUse], int]:
    layout = manifest.layout
    none = np.array([], np.int64)
    counts = [[(none, none) for _ in layout.groups] for _ in layout.vocabularies]
    counted, reader = 0, TokenReader(uri, manifest)
    for number in range(len(manifest.shards)):
        if limit is not None and counted >= limit:
            break
        tokens_NWLF = reader.block(number).tokens_NWLF
        counted += len(tokens_NWLF)
        for fold in range(layout.folds):
            for group in range(len(layout.groups)):
                used = tokens_NWLF[:, :, layout.span(group), fold]
                counts[fold][group] = _counted(*counts[fold][group], used)
    use = [
        CodebookUse(fold, group, positions, len(codes) / layout.vocabularies[fold], perplexity(count))
        for fold, row in enumerate(counts)
        for group, (positions, (codes, count)) in enumerate(zip(layout.groups, row, strict=True))
    ]
    return use, counted


def _counted(
    codes: npt.NDArray[np.int64], count: npt.NDArray[np.int64], more: Tokens
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The codes that occur, and how often, with some more tokens; a vocabulary of 2^32 codes takes no memory."""
    found, times = np.unique(more, return_counts=True)
    both, place = np.unique(np.concatenate([codes, found.astype(np.int64)]), return_inverse=True)
    total = np.zeros(len(both), np.int64)
    np.add.at(total, place, np.concatenate([count, times]))
    return both, total


def perplexity(count_V: npt.NDArray[np.int64]) -> float:
    """The exponential of a histogram's entropy; 0 if it is empty."""
    if not count_V.sum():
        return 0.0
    share = count_V[count_V > 0] / count_V.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def decoded_samples(uri: str, samples: int) -> Pixels:
    """The first images of a data set as squares of one size, uint8 [N, H, W, 3]; nothing is enlarged but the smallest.

    Raises:
        CorruptShardError: if one is damaged; it names shard and key.
    """
    images = ImageShards(uri)
    files = [(images.read(index), images.where(index)) for index in range(min(samples, images.count))]
    pictures = []
    for data, where in files:
        try:
            pictures.append(decode(data))
        except ValueError as error:
            raise UsageError(f"{where} {error}") from error
    side = min(MOST_PIXELS, *(min(picture.size) for picture in pictures))
    return np.stack([np.asarray(center_crop(picture, side)) for picture in pictures])


def reconstructed_samples(uri: str, tokenizer: str, samples: int) -> npt.NDArray[np.float32]:
    """The first images of a token data set, through the tokenizer that made it: float32 [N, C, H, W] in [-1, 1].

    Args:
        uri: of the token data set.
        tokenizer: folder with the tokenizer's export.
        samples: how many; the first view of each.

    Raises:
        UsageError: if another tokenizer made the tokens.
        CorruptShardError: if a shard is damaged; it names shard and key.
    """
    manifest = TokenManifest.read(uri)
    card = weights.read_card(tokenizer, "tokenizer")
    check_tokenizer(manifest, card)
    tokens_NLF = _first_tokens(uri, manifest, samples)
    import torch

    network, _ = load_tokenizer(tokenizer, "cpu")
    with torch.inference_mode():
        images = network.detokenize(torch.from_numpy(tokens_NLF.astype(np.int64)))
    return np.asarray(images.numpy(), np.float32)


def _first_tokens(uri: str, manifest: TokenManifest, samples: int) -> Tokens:
    return TokenReader(uri, manifest).samples(0, min(samples, manifest.samples)).tokens_NWLF[:, 0]
