"""Tars: the same bytes for the same content, readable by others, arrays aligned."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.storage.tar import BLOCK, read_members, write_tar

parts = st.lists(st.text("abcé_-0", min_size=1), min_size=1, max_size=4)
names = st.lists(parts.map("/".join), max_size=5, unique=True)


@given(names, st.data())
def test_python_reads_back_every_member_at_the_offset_that_was_stated(names: list[str], data: st.DataObject) -> None:
    files = [(name, data.draw(st.binary(max_size=1100))) for name in names if len(name) < 40]
    archive, members = write_tar(files)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert [(info.name, info.offset_data, info.size) for info in tar] == [
            (member.name, member.offset, member.length) for member in members
        ]
    assert [archive[m.offset : m.offset + m.length] for m in members] == [content for _, content in files]


def test_headers_name_no_time_and_no_owner() -> None:
    archive, _ = write_tar([("a", b"1")])
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        info = tar.getmember("a")
    assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)


def test_gnu_tar_extracts_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(write_tar([("one.bin", b"x" * 513), ("folder/two.bin", b"")])[0])
    done = subprocess.run(["tar", "xvf", "a.tar"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["one.bin", "folder/two.bin"]
    assert done.stderr == ""
    assert (tmp_path / "one.bin").read_bytes() == b"x" * 513


@given(st.sampled_from(["u1", "<u2", "<i4", "<f8", "S7"]), st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_the_array_of_an_npy_member_starts_at_a_multiple_of_64_bytes(dtype: str, shape: list[int]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(shape, dtype))
    _, members = write_tar([("other", b"12345"), ("array.npy", buffer.getvalue())])
    file = io.BytesIO(buffer.getvalue())
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    assert members[1].offset % BLOCK == 0
    assert (members[1].offset + file.tell()) % 64 == 0


def test_a_name_that_a_plain_header_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 100 bytes"):
        write_tar([("é" * 51, b"")])


def test_members_are_found_from_the_headers_of_a_file(tmp_path: Path) -> None:
    archive, members = write_tar([("a.npy", b"12"), ("b.json", b"{}")])
    (tmp_path / "a.tar").write_bytes(archive)
    assert read_members(str(tmp_path / "a.tar")) == members


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//b", "a\\b", "a\nb", ""])
def test_no_tar_is_written_that_would_be_unpacked_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="is no name below a folder"):
        write_tar([(name, b"")])
