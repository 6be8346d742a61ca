"""The sets that an edit starts from: their manifests, and the keys and labels of their samples shard by shard."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.edits import parent_uri
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.sample_index import open_sample_index
from data_pipeline.shards.token_reader import Columns, TokenReader, read_parent

_READS = 8
"""Shards whose keys and labels are read at a time."""

Numbers = npt.NDArray[np.int64]
Manifest = ImageManifest | TokenManifest


class ImageReader:
    """A set of images as a parent: as `TokenReader`, with the samples' index in place of their shards.

    Args:
        uri: of the data set.
        manifest: of it.
    """

    def __init__(self, uri: str, manifest: ImageManifest) -> None:
        self.uri, self.manifest = uri, manifest
        self.index = open_sample_index(uri, manifest, NodeCache())

    @functools.cached_property
    def parents(self) -> tuple[ImageReader, ...]:
        """The sets that it was made of."""
        edit = self.manifest.edit
        stated = edit.parents if edit is not None else ()
        manifests = [read_parent(self.uri, each, ImageManifest) for each in stated]
        uris = [parent_uri(self.uri, each) for each in stated]
        return tuple(ImageReader(uri, manifest) for uri, manifest in zip(uris, manifests, strict=True))

    def columns(self, number: int) -> Columns:
        """Labels and keys of one shard."""
        here = slice(*self.manifest.shards.starts[number : number + 2].tolist())
        return Columns(self.index.label[here], self.index.key[here])


Reader = TokenReader | ImageReader


def columns_of(reader: Reader) -> Iterator[Columns]:
    """Keys and labels of a set, shard by shard; some are read ahead."""
    numbers = range(len(reader.manifest.shards))
    with ThreadPoolExecutor(_READS, "columns") as pool:
        for first in range(0, len(numbers), 4 * _READS):
            yield from pool.map(reader.columns, numbers[first : first + 4 * _READS])
