"""Raw images as they are found: one file per kind of source, chosen here by the kind that the config names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_pipeline.config import Source
from data_pipeline.sources.folder import FolderImages
from data_pipeline.sources.idx import IdxImages
from data_pipeline.sources.ilsvrc import ILSVRCImages
from data_pipeline.sources.ilsvrc_validation import ILSVRCValidationImages
from data_pipeline.sources.parquet import ParquetImages
from data_pipeline.sources.source import Facts, ImageSource, ItemReader, RawItem, RawSource, safe_key
from data_pipeline.sources.webdataset import WebDatasetImages

_KINDS: dict[str, Callable[[Any], RawSource]] = {
    "idx": IdxImages,
    "folder": FolderImages,
    "ilsvrc": ILSVRCImages,
    "ilsvrc_val": ILSVRCValidationImages,
    "webdataset": WebDatasetImages,
    "parquet": ParquetImages,
}


def find_source(config: Source) -> RawSource:
    """A source, before it is listed.

    Raises:
        UsageError: if there are no such files.
    """
    return _KINDS[config.kind](config)


def open_source(config: Source) -> ImageSource:
    """List a small source's images, in memory.

    Raises:
        UsageError: if it is missing, empty or not of its kind.
    """
    return ImageSource.of(find_source(config))


__all__ = ["Facts", "ImageSource", "ItemReader", "RawItem", "RawSource", "find_source", "open_source", "safe_key"]
