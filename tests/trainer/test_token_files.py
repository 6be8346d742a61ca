"""Tokens of some images in a file that numpy reads, and that is checked before it is believed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import UsageError
from model.layout import TokenLayout
from trainer.inference.token_files import TokenFile, read_token_file

LAYOUT = TokenLayout((1, 4), (64, 70_000))


def held() -> TokenFile:
    tokens_NLF = np.arange(20).reshape(2, 5, 2)
    return TokenFile(tokens_NLF, ("a/é.png", "b.jpg"), "0" * 64, LAYOUT, 256, "crop")


def written(path: Path, **changes: Any) -> Path:
    held().write(str(path))
    with np.load(path) as found:
        arrays = {name: array for name, array in (dict(found) | changes).items() if array is not None}
    if changes:
        np.savez(path, **arrays)
    return path


def test_what_is_written_is_read_again_and_has_the_same_bytes(tmp_path: Path) -> None:
    path, again = written(tmp_path / "a.npz"), tmp_path / "b.npz"
    found = read_token_file(str(path))
    assert np.array_equal(found.tokens_NLF, held().tokens_NLF)
    assert found.tokens_NLF.dtype == np.uint32  # a vocabulary has more than 65,536 codes
    assert (found.names, found.encoder, found.layout) == (held().names, "0" * 64, LAYOUT)
    assert (found.image_size, found.fit) == (256, "crop")
    held().write(str(again))
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": np.zeros((2, 6, 2), np.uint16)}, r"tokens of uint16 \[2, 6, 2\] should be .* of \[2, 5, 2\]"),
        ({"tokens": np.zeros((2, 5, 2))}, "tokens of float64"),
        ({"names": np.array([b"a"])}, r"should be whole numbers of \[1, 5, 2\]"),
        ({"names": np.array([[b"a"], [b"b"]])}, "should be lists of byte strings"),
        ({"names": np.array([1, 2])}, "should be lists of byte strings"),
        ({"names": np.array([b"\xff", b"b"])}, "no file of tokens"),
        ({"groups": np.array([1.0, 4.0])}, "should be lists of whole numbers"),
        ({"groups": np.ones(100_001, np.int64)}, "more than 100000 groups"),
        ({"groups": np.array([-1, 4])}, "no file of tokens"),
        ({"version": np.array([2])}, "version 2, and this foldtrain reads 1"),
        ({"image_size": np.array([1, 2])}, "should have one value"),
        ({"fit": None}, r"in place of"),
        ({"more": np.array([1])}, r"in place of"),
        ({"tokens": np.array([[[None]]])}, "no file of tokens"),
    ],
)  # fmt: skip
def test_what_does_not_agree_is_refused_with_the_file(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = written(tmp_path / "a.npz", **changes)
    with pytest.raises(
        UsageError, match=rf"a\.npz is no file of tokens that foldtrain encode writes \(.*{words}|{words}"
    ):
        read_token_file(str(path))


def test_an_archive_that_unfolds_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(UsageError, match="it is compressed"):
        read_token_file(str(path))


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"PK\x03\x04"])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UsageError, match=r"a\.npz is no file of tokens"):
        read_token_file(str(tmp_path / "a.npz"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*a\.npz: give one that foldtrain encode has written"):
        read_token_file(str(tmp_path / "a.npz"))


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    data = io.BytesIO(written(tmp_path / "a.npz").read_bytes()).getvalue()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"a\.npz is no file of tokens"):
        read_token_file(str(tmp_path / "a.npz"))
