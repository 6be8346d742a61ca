"""A token shard that anybody may have written: its members fit each other and the manifest, or it is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.shards.conditions import check_classes
from data_pipeline.shards.manifest import ShardRecord
from data_pipeline.shards.token_archive import read_columns, read_token_shard
from data_pipeline.shards.token_shards import TokenBlock, encode_token_shard
from data_pipeline.storage.tar import list_members, write_tar

NAME = "tokens-00000.tar"


def shard(keys: list[bytes] | None = None) -> bytes:
    block = TokenBlock(
        np.zeros((3, 1, 5, 2), np.uint16), np.array([0, 1, 2], np.int32), np.array(keys or [b"a", b"b", b"c/d"], "S")
    )
    return encode_token_shard(NAME, block, {})


def put(folder: Path, archive: bytes, samples: int = 3) -> ShardRecord:
    (folder / NAME).write_bytes(archive)
    return ShardRecord(name=NAME, samples=samples, bytes=len(archive), sha256=storage.sha256(archive))


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_member(field: str, data: bytes) -> bytes:
    """The shard with another member."""
    archive = shard()
    files = [(member.name, archive[member.offset : member.offset + member.length]) for member in list_members(archive)]
    return write_tar([(name, data if f".{field}." in name else old) for name, old in files])[0]


READERS: list[Callable[[str, ShardRecord], object]] = [read_token_shard, read_columns]


@pytest.mark.parametrize("read", READERS)
def test_what_was_not_changed_is_read(tmp_path: Path, read: Callable[[str, ShardRecord], Any]) -> None:
    found = read(str(tmp_path), put(tmp_path, shard()))
    assert (found.condition.tolist(), found.key.tolist()) == ([0, 1, 2], [b"a", b"b", b"c/d"])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("field", "array", "reason"),
    [
        ("condition", np.zeros(4, np.int32), "different numbers of samples"),
        ("condition", np.zeros(2, np.int32), "different numbers of samples"),
        ("key", np.array([b"a", b"b"]), "different numbers of samples"),
        ("condition", np.zeros(3, np.int64), "holds int64"),
        ("condition", np.zeros((3, 1), np.int32), "in 2 dimensions"),
        ("key", np.array([b"a", b"b", b"x" * 300]), "holds |S300"),
        ("key", np.array([b"a", b"../../b", b"c"]), "is no name below a folder"),
        ("key", np.array([b"a", b"/b", b"c"]), "is no name below a folder"),
        ("key", np.array([b"a", b"\xff", b"c"]), "utf-8"),
    ],
)
def test_conditions_and_keys_that_do_not_fit_are_named(
    tmp_path: Path, read: Callable[[str, ShardRecord], object], field: str, array: Any, reason: str
) -> None:
    record = put(tmp_path, with_member(field, npy(array)))
    with pytest.raises(CorruptShardError, match=f"{NAME}.*{reason.replace('|', '.')}"):
        read(str(tmp_path), record)


@pytest.mark.parametrize("read", READERS)
def test_another_number_of_samples_than_the_manifest_says_is_named(
    tmp_path: Path, read: Callable[[str, ShardRecord], object]
) -> None:
    with pytest.raises(CorruptShardError, match="holds 3 samples, but its manifest says 4"):
        read(str(tmp_path), put(tmp_path, shard(), samples=4))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("meta", [b"[]", b"[" * 100_000, b'{"a": NaN}', b""], ids=lambda meta: repr(meta[:9]))
def test_a_meta_that_is_no_record_is_named(
    tmp_path: Path, read: Callable[[str, ShardRecord], object], meta: bytes
) -> None:
    with pytest.raises(CorruptShardError, match=NAME):
        read(str(tmp_path), put(tmp_path, with_member("meta", meta)))


@pytest.mark.timeout(60)  # without the check it never ends
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("size", [-512, -1024, -(2**60), 2**60])
def test_a_size_that_cannot_be_ends_at_once(
    tmp_path: Path, read: Callable[[str, ShardRecord], object], size: int
) -> None:
    """Negative sizes are what base-256 numbers of GNU tar can hold; following them leads back to the same header."""
    info = tarfile.TarInfo(NAME)
    info.size = size
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(CorruptShardError, match=f"should have {size} bytes"):
        read(str(tmp_path), put(tmp_path, header + shard()))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_member_that_is_no_regular_file_is_refused(
    tmp_path: Path, read: Callable[[str, ShardRecord], object], kind: bytes
) -> None:
    info = tarfile.TarInfo("tokens-00000.condition.npy")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(CorruptShardError, match=r"is no regular file|cut"):
        read(str(tmp_path), put(tmp_path, info.tobuf() + shard()))


def test_a_shard_that_is_longer_than_its_manifest_says_is_not_read_whole(tmp_path: Path) -> None:
    record = put(tmp_path, shard())
    (tmp_path / NAME).write_bytes(shard() + bytes(2000))
    with pytest.raises(CorruptShardError, match="has more than the"):
        read_token_shard(str(tmp_path), record)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_condition_that_names_no_class_is_refused(label: int) -> None:
    check_classes("x.tar", np.array([0, 2], np.int32), 3, "mend it")
    with pytest.raises(CorruptShardError, match=f"x.tar holds the class {label}, but there are 3 classes; mend it"):
        check_classes("x.tar", np.array([0, label], np.int32), 3, "mend it")
