"""ADM's reference files: npz with statistics of the 2015 Inception, with images, or with both.

    mu, sigma        of `features` (pool_3), [2048] and [2048, 2048]
    mu_s, sigma_s    of `spatial` (the first 7 channels of mixed_6/conv), [2023] and [2023, 2023]
    arr_0            images, uint8 [N, H, W, 3]

Any of them may be missing. Nothing in the file is trusted: an array is read once its size is known. Images are read by
sets/npz_set.py.

Shapes: N images of the file, H height, W width, D channels of a feature.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.text.npy import MOST_START, NpyHeader, parse_header, parse_npy
from trainer.metrics.frechet import FeatureStatistics
from trainer.metrics.metric import Array

STATISTICS = {"features": ("mu", "sigma", 2048), "spatial": ("mu_s", "sigma_s", 2023)}
"""Outputs of Inception (inception.py): names of their mean and covariance, and their channels."""
IMAGES = "arr_0"
_ASYMMETRY = 1e-3
"""Of a covariance, as a share of its largest value: those published are float32 at worst."""
_CHUNK = 2**22


@dataclass(frozen=True)
class ReferenceFile:
    """What such a file holds."""

    uri: str
    sha256: str
    """Of the file."""
    statistics: dict[str, FeatureStatistics] = field(repr=False)
    """By output of Inception: features, spatial. How many images they are of is not known."""
    shape: tuple[int, ...] | None
    """Of the images, [N, H, W, 3]; None without any."""

    @classmethod
    def read(cls, uri: str) -> Self:
        """Statistics, and what there is of images; the file is read once more for its hash.

        Raises:
            UsageError: if it is not there, is no such file, or is damaged.
        """
        with _archive(uri) as archive:
            found = {name: _statistics(archive, *names) for name, names in STATISTICS.items()}
            shape = _image_header(archive).shape if _holds(archive, IMAGES) else None
        statistics = {name: each for name, each in found.items() if each is not None}
        if not statistics and shape is None:
            raise UsageError(f"{uri} has neither mu and sigma nor arr_0: it is no reference file of ADM's")
        return cls(uri, _sha256(uri), statistics, shape)

    def identity(self) -> dict[str, Any]:
        """JSON: kind, and sha256 of the file."""
        return {"kind": "npz", "sha256": self.sha256}


@contextlib.contextmanager
def _archive(uri: str) -> Iterator[zipfile.ZipFile]:
    """The open file; what its readers find wrong names it."""
    try:
        with storage.open_reader(uri) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise UsageError(f"{uri} is not there: ADM's reference files are listed in its evaluations/README.md") from None
    except zipfile.BadZipFile as error:
        raise CorruptShardError(f"{uri} is damaged, or no npz ({error}): copy it again") from None
    except (ValueError, NotImplementedError, RuntimeError, EOFError, struct.error, zlib.error) as error:
        raise UsageError(f"{uri} is no reference file of ADM's: {error}") from None


def _statistics(archive: zipfile.ZipFile, mean: str, covariance: str, width: int) -> FeatureStatistics | None:
    """A Gaussian of the file; None if it has neither part."""
    held = [name for name in (mean, covariance) if _holds(archive, name)]
    if not held:
        return None
    if len(held) == 1:
        raise ValueError(f"it has {held[0]} without the other of {mean} and {covariance}")
    mean_D, covariance_DD = _array(archive, mean, (width,)), _array(archive, covariance, (width, width))
    if np.abs(covariance_DD - covariance_DD.T).max() > _ASYMMETRY * np.abs(covariance_DD).max():
        raise ValueError(f"{covariance} is no covariance: it is not symmetric")
    return FeatureStatistics(mean_D, covariance_DD)


def _array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> Array:
    """An array of a known shape, as float64."""
    most = int(np.prod(shape)) * 8 + MOST_START
    with archive.open(_member(name)) as file:
        data = file.read(most + 1)
    header = parse_header(data[:MOST_START])
    if header.shape != shape or header.dtype.kind != "f":
        raise ValueError(f"{name} is {header.dtype} {list(header.shape)}, and Inception's is of floats {list(shape)}")
    found = np.asarray(parse_npy(data), np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"{name} holds values that are not finite")
    return found


def _image_header(archive: zipfile.ZipFile) -> NpyHeader:
    info = archive.getinfo(_member(IMAGES))
    with archive.open(info) as file:
        header = parse_header(file.read(MOST_START))
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[-1] != 3 or header.is_fortran:
        raise ValueError(f"arr_0 is {header.dtype} {list(header.shape)}, and images are uint8 [N, H, W, 3]")
    header.check_bytes(info.file_size - header.start)
    return header


def _member(name: str) -> str:
    return f"{name}.npy"


def _holds(archive: zipfile.ZipFile, name: str) -> bool:
    return _member(name) in archive.namelist()


def _sha256(uri: str) -> str:
    digest = hashlib.sha256()
    with storage.open_reader(uri) as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()
