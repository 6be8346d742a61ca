"""Images read through copies on the node: damage heals; what is missing is told from a cache that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from data_pipeline.errors import CorruptShardError, FoldtrainError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageShards
from tests.data_pipeline.small_data import Images, flip_byte


@pytest.fixture
def remote(images: Images) -> Iterator[str]:
    """The data set on a remote filesystem."""
    uri = f"memory://{uuid4().hex}"
    fsspec.filesystem("memory").put(images.uri + "/", uri + "/", recursive=True)
    yield uri
    fsspec.filesystem("memory").rm(uri, recursive=True)


def copies(cache: NodeCache) -> list[Path]:
    return sorted(cache.folder.glob("*.tar"))


def test_images_through_copies_are_those_of_the_shards(remote: str, images: Images, tmp_path: Path) -> None:
    far, near = ImageShards(remote, cache=NodeCache(str(tmp_path / "cache"))), ImageShards(images.uri)
    assert list(far.scan(0, 20)) == list(near.scan(0, 20)) == [far.read(index) for index in range(20)]


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(700)


@pytest.mark.parametrize("damage", [_cut, lambda path: flip_byte(path, 700)])
def test_a_damaged_copy_is_fetched_again(
    remote: str, images: Images, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cache = NodeCache(str(tmp_path / "cache"))
    far, near = ImageShards(remote, cache=cache), ImageShards(images.uri)
    for read in (far.read, lambda index: next(far.scan(index, index + 1))):
        before = cache.damaged
        far.read(0)
        (path,) = copies(cache)
        damage(path)
        assert read(0) == near.read(0)
        assert cache.damaged == before + 1


def test_a_shard_that_is_missing_in_storage_is_called_so(remote: str, tmp_path: Path) -> None:
    far = ImageShards(remote, cache=NodeCache(str(tmp_path / "cache")))
    fsspec.filesystem("memory").rm(f"{remote}/images-00000.tar")
    with pytest.raises(CorruptShardError, match=r"images-00000\.tar is missing: run foldtrain ingest again"):
        far.read(0)


def test_a_cache_that_cannot_be_used_is_not_called_a_missing_shard(remote: str, tmp_path: Path) -> None:
    far = ImageShards(remote, cache=NodeCache("/proc/cache"), index_cache=NodeCache(str(tmp_path)))
    with pytest.raises(FoldtrainError, match=r"data\.reading\.cache_dir") as caught:
        far.read(0)
    assert not isinstance(caught.value, CorruptShardError)


def test_a_shard_that_is_damaged_in_storage_is_fetched_once_more_and_named(remote: str, tmp_path: Path) -> None:
    near = fsspec.filesystem("memory")
    path = f"{remote}/images-00000.tar"
    data = bytearray(near.cat_file(path))
    data[700] ^= 0xFF
    near.pipe_file(path, bytes(data))
    far = ImageShards(remote, cache=NodeCache(str(tmp_path / "cache")))
    with pytest.raises(CorruptShardError, match=r"images-00000\.tar is corrupt \(sha256 differs\)"):
        far.read(0)
