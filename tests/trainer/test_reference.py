"""ADM's reference files: what is read of them, and what is refused."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import CorruptShardError, UsageError
from trainer.evaluation.reference import ReferenceFile

WIDTHS = {"": 2048, "_s": 2023}


def statistics(suffix: str, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """A mean and a covariance that no two channels share."""
    width = WIDTHS[suffix]
    ramp = np.arange(width, dtype=dtype)
    return {f"mu{suffix}": ramp / 7, f"sigma{suffix}": np.diag(ramp + 1)}


def images(count: int, size: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size + 1, 3), dtype=np.uint8)


def write(path: Path, *, compressed: bool = False, **arrays: Any) -> str:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return str(path)


def test_statistics_are_read_under_the_names_of_inceptions_outputs(tmp_path: Path) -> None:
    found = ReferenceFile.read(write(tmp_path / "reference.npz", **statistics(""), **statistics("_s")))
    assert found.shape is None
    for name, suffix in (("features", ""), ("spatial", "_s")):
        expected, read = statistics(suffix), found.statistics[name]
        assert (read.mean_D == expected[f"mu{suffix}"]).all()
        assert (read.covariance_DD == expected[f"sigma{suffix}"]).all()
        assert read.mean_D.dtype == read.covariance_DD.dtype == np.float64
        assert read.count is None


def test_any_part_may_be_missing(tmp_path: Path) -> None:
    only = ReferenceFile.read(write(tmp_path / "spatial.npz", **statistics("_s", np.float64)))
    assert set(only.statistics) == {"spatial"}
    pictures = ReferenceFile.read(write(tmp_path / "images.npz", arr_0=images(4), arr_1=np.arange(4)))
    assert pictures.statistics == {}
    assert pictures.shape == (4, 5, 6, 3)


def test_its_identity_is_the_hash_of_the_file(tmp_path: Path) -> None:
    uri = write(tmp_path / "images.npz", arr_0=images(4))
    expected = hashlib.sha256((tmp_path / "images.npz").read_bytes()).hexdigest()
    assert ReferenceFile.read(uri).identity() == {"kind": "npz", "sha256": expected}


def asymmetric() -> np.ndarray:
    found = np.eye(2048)
    found[0, 1] = 1
    return found


NOT_FINITE = np.full(2048, np.nan)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(2048)}, "has mu without the other"),
        ({"mu": np.zeros(768), "sigma": np.eye(768)}, r"mu is float64 \[768\], and Inception's is of floats \[2048\]"),
        ({"mu": np.zeros(2048), "sigma": np.zeros((3, 2048))}, r"sigma is float64 \[3, 2048\]"),
        ({"mu": np.zeros(2048), "sigma": asymmetric()}, "sigma is no covariance"),
        ({"mu": NOT_FINITE, "sigma": np.eye(2048)}, "not finite"),
        ({"mu": np.array([{}]), "sigma": np.eye(2048)}, "header is none of an array of numbers"),
        ({"arr_0": images(4).astype(np.float32)}, r"arr_0 is float32 .*images are uint8 \[N, H, W, 3\]"),
        ({"arr_0": images(4)[..., :1]}, r"arr_0 is uint8 \[4, 5, 6, 1\]"),
        ({"other": np.zeros(3)}, "neither mu and sigma nor arr_0"),
    ],
)
def test_other_files_are_refused_with_what_is_wrong(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        ReferenceFile.read(write(tmp_path / "odd.npz", **arrays))
    assert "odd.npz" in str(refused.value)


def test_a_covariance_may_be_uneven_in_its_last_digits(tmp_path: Path) -> None:
    uneven = np.eye(2048, dtype=np.float32) * 1000
    uneven[0, 1] = 0.01
    found = ReferenceFile.read(write(tmp_path / "reference.npz", mu=np.zeros(2048), sigma=uneven))
    assert found.statistics["features"].covariance_DD[0, 1] == np.float32(0.01)


@pytest.mark.parametrize("claimed", [3, 5])
def test_a_header_of_more_or_fewer_images_than_there_are_is_refused(tmp_path: Path, claimed: int) -> None:
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (claimed, 5, 6, 3)}
    np.lib.format.write_array_header_1_0(header, described)
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + images(4).tobytes())
    with pytest.raises(UsageError, match=r"odd\.npz .*but there are 360"):
        ReferenceFile.read(str(tmp_path / "odd.npz"))


def test_what_is_no_archive_or_is_cut_short_is_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "cut.npz", arr_0=images(60))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-100])
    with pytest.raises(CorruptShardError, match=r"cut\.npz is damaged, or no npz"):
        ReferenceFile.read(uri)


def test_a_missing_file_is_refused_with_where_such_files_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.npz is not there: ADM's reference files"):
        ReferenceFile.read(str(tmp_path / "none.npz"))
