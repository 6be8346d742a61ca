"""A cache that is too small for the shards that are shuffled together is refused before training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from data_pipeline.config import DataConfig, FolderSource, ReadingConfig
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.node.copy_seal import SEAL_BYTES
from data_pipeline.shards.manifest import ImageManifest
from tests.data_pipeline.small_data import write_photos
from trainer.stages.inputs import open_images


class Job:
    """What is read of a job."""

    def __init__(self, uri: str, limit: int | None) -> None:
        self.inputs = {"images": uri}
        self.reading = ReadingConfig(cache_images=True, cache_bytes=limit, shuffle_window=1)


def test_a_cache_has_room_for_the_window_and_the_next_shard_with_their_seals(tmp_path: Path) -> None:
    source = FolderSource(path=str(write_photos(tmp_path / "photos")))
    ingest(DataConfig(source=source, shard_samples=7), str(tmp_path / "images"), seed=0)
    uri = str(tmp_path / "images/train")
    largest = max(shard.bytes for shard in ImageManifest.read(uri).shards)
    fits = 2 * (largest + SEAL_BYTES)
    open_images(cast("Any", Job(uri, fits)))
    with pytest.raises(UsageError, match=r"data\.reading\.cache_bytes"):
        open_images(cast("Any", Job(uri, fits - 1)))


def test_a_disk_that_is_too_small_for_the_window_is_refused_without_a_limit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FolderSource(path=str(write_photos(tmp_path / "photos")))
    ingest(DataConfig(source=source, shard_samples=7), str(tmp_path / "images"), seed=0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10_000, free=6_000))
    with pytest.raises(UsageError, match=r"may hold 5,000 bytes .* 1 shards are shuffled together"):
        open_images(cast("Any", Job(str(tmp_path / "images/train"), None)))
