"""A cache that is too small for the shards that are shuffled together is refused before training."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import fsspec
import pytest

from data_pipeline import storage
from data_pipeline.config import DataConfig, FolderSource, ReadingConfig, TokensConfig
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.node.copy_seal import SEAL_BYTES
from data_pipeline.shards.manifest import ImageManifest
from data_pipeline.tokens.tokenizing import plan_tokens
from data_pipeline.tools import editing
from data_pipeline.tools.preflight import check_images, check_tokens
from tests.data_pipeline.small_data import tokenize_all, tokenizer_card, write_photos
from trainer.job import TrainJob
from trainer.stages.inputs import open_images, open_tokens


class Job:
    """What is read of a job."""

    def __init__(self, uri: str, limit: int | None) -> None:
        self.inputs = {"images": uri}
        self.manifests: dict[str, Any] = {}
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


def node_of_ranks(job: TrainJob, folder: Path) -> Counter[str]:
    """Requests of eight ranks of one node, each of which gets the job as Ray sends it."""
    sent = pickle.dumps(replace(job, reading=ReadingConfig(cache_dir=str(folder))))
    with storage.counted() as found:
        opened = [(open_tokens if "tokens" in job.inputs else open_images)(pickle.loads(sent)) for _ in range(8)]
    assert len({each.manifest.fingerprint for each in opened}) == 1
    assert all(each.keys.tolist() == opened[0].keys.tolist() for each in opened)  # type: ignore[union-attr]
    return found


@pytest.fixture
def far(tmp_path: Path) -> Iterator[str]:
    """Images and tokens in remote storage, in three shards each."""
    source = FolderSource(path=str(write_photos(tmp_path / "photos")))
    uri = f"memory://{uuid4().hex}"
    ingest(DataConfig(source=source, shard_samples=7), f"{uri}/images", seed=0)
    tokenize_all(
        plan_tokens(f"{uri}/images/train", tokenizer_card(), TokensConfig(shard_samples=7), f"{uri}/tokens", "crop")
    )
    yield uri
    fsspec.filesystem("memory").rm(uri, recursive=True)


def test_a_node_of_eight_ranks_asks_for_the_table_and_the_index_of_its_images_once(far: str, tmp_path: Path) -> None:
    uri = f"{far}/images/train"
    job = TrainJob("classifier", "", cast("Any", None), 0, "crop", ReadingConfig(), {"images": uri}, {}, {})
    job = replace(job, manifests={"images": check_images(uri)})
    assert node_of_ranks(job, tmp_path / "cache") == {"get": 2}
    without = replace(job, manifests={})
    assert node_of_ranks(without, tmp_path / "other") == {"head": 8, "get": 8 + 2}


def test_a_node_of_eight_ranks_asks_for_the_table_and_for_each_shard_of_its_tokens_once(
    far: str, tmp_path: Path
) -> None:
    uri = f"{far}/tokens"
    job = TrainJob("generator", "", cast("Any", None), 0, "crop", ReadingConfig(), {"tokens": uri}, {}, {})
    job = replace(job, manifests={"tokens": check_tokens(uri)})
    found = node_of_ranks(job, tmp_path / "cache")
    assert (found["get"], found["head"], found.total()) == (1 + 3, 3, 7)


def test_each_set_of_a_mix_has_a_window_of_its_own(tmp_path: Path) -> None:
    uris = []
    for name in ("one", "other"):
        photos = write_photos(tmp_path / name / "photos")
        for path in photos.rglob("*.jpg"):
            path.rename(path.with_name(f"{name} {path.name}"))
        config = DataConfig(source=FolderSource(path=str(photos)), shard_samples=7)
        ingest(config, str(tmp_path / f"{name} images"), seed=0)
        uris.append(str(tmp_path / f"{name} images" / "train"))
    mixed = str(tmp_path / "mixed")
    editing.mix(dict.fromkeys(uris, 1.0), mixed).write(say=lambda _: None)
    largest = max(shard.bytes for shard in ImageManifest.read(mixed).shards)
    fits = 3 * (largest + SEAL_BYTES)
    open_images(cast("Any", Job(mixed, fits)))
    with pytest.raises(UsageError, match="2 shards are shuffled together"):
        open_images(cast("Any", Job(mixed, fits - 1)))


def test_a_cache_has_room_for_the_copies_of_table_and_index_too(far: str, tmp_path: Path) -> None:
    uri = f"{far}/images/train"
    manifest = check_images(uri)
    largest = max(shard.bytes for shard in manifest.shards)
    held = storage.size(f"{uri}/index.bin") + storage.size(f"{uri}/shards.bin")
    fits = held + 2 * largest + 4 * SEAL_BYTES
    job = TrainJob("classifier", "", cast("Any", None), 0, "crop", ReadingConfig(), {"images": uri}, {}, {})
    for limit, folder in ((fits, "a"), (fits - 1, "b")):
        cache = {"cache_dir": str(tmp_path / folder), "cache_bytes": limit, "cache_images": True, "shuffle_window": 1}
        limited = replace(job, reading=ReadingConfig(**cache), manifests={"images": manifest})
        if limit == fits:
            images = open_images(limited)
            assert len(list(images.scan(0, images.count))) == 20
            continue
        with pytest.raises(UsageError, match=r"data\.reading\.cache_bytes"):
            open_images(limited)
