"""Finds the sources that a config names, before they are listed."""

from __future__ import annotations

from typing import NamedTuple

from data_pipeline import storage
from data_pipeline.config import DataConfig
from data_pipeline.errors import UsageError
from data_pipeline.sources import RawSource, find_source
from data_pipeline.sources.nesting import refuse_nesting


class Sources(NamedTuple):
    """The sources of a config, before they are listed."""

    by_split: dict[str, RawSource]
    """One, or one of each split."""
    stamps: dict[str, str]
    """Of each of them."""
    key: str
    """Of the plan: a digest of all that it depends on."""


def find_sources(config: DataConfig, output: str, seed: int) -> Sources:
    """Find the files of the sources; nothing is listed or written.

    Raises:
        UsageError: if they are not there, or the config does not fit them or the output.
    """
    try:
        refuse_nesting(config, {"the folder of the image shards": output})
    except ValueError as error:
        raise UsageError(str(error)) from None
    if config.validation_source is not None and config.validation_samples:
        raise UsageError(
            f"data.validation_samples is {config.validation_samples} and data.validation_source is set: validation "
            "images are held out of the training source, or are a source of their own. Set one of them to 0 or null"
        )
    if config.source is None:
        raise UsageError(
            "data.source is missing: ingest needs raw images. A stage that is to read image shards that are there "
            "already finds them by inputs.images"
        )
    found = {"train": find_source(config.source)}
    if config.validation_source is not None:
        found["validation"] = find_source(config.validation_source)
    stamps = {split: source.stamp() for split, source in found.items()}
    depends = [1, stamps, seed, config.validation_samples, config.shard_samples, config.shard_bytes]
    return Sources(found, stamps, storage.fingerprint(depends))
