"""Raw images as they are found: one file per kind of source, chosen here by the kind that the config names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_pipeline.config import Source
from data_pipeline.sources.folder import open_folder
from data_pipeline.sources.idx import open_idx
from data_pipeline.sources.ilsvrc import open_ilsvrc
from data_pipeline.sources.ilsvrc_validation import open_ilsvrc_validation
from data_pipeline.sources.parquet import open_parquet
from data_pipeline.sources.source import ImageSource, ItemReader, RawItem, safe_key
from data_pipeline.sources.webdataset import open_webdataset

_KINDS: dict[str, Callable[[Any], ImageSource]] = {
    "idx": open_idx,
    "folder": open_folder,
    "ilsvrc": open_ilsvrc,
    "ilsvrc_val": open_ilsvrc_validation,
    "webdataset": open_webdataset,
    "parquet": open_parquet,
}


def open_source(config: Source) -> ImageSource:
    """List a source's images.

    Raises:
        UsageError: if it is missing, empty or not of its kind.
    """
    return _KINDS[config.kind](config)


__all__ = ["ImageSource", "ItemReader", "RawItem", "open_source", "safe_key"]
