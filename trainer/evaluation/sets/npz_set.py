"""The images of an npz in ADM's layout, read by ranges.

Shapes: B images of N, H height, W width.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.images.transforms import Pixels
from data_pipeline.text.npy import MOST_START, NpyHeader, parse_header
from trainer.evaluation.samples.sample_files import SamplePlan
from trainer.evaluation.samples.sample_record import npz_plan
from trainer.evaluation.sets.image_set import NO_LABEL, ImageReader, Labels

_LOCAL_HEADER = 30
"""Bytes of the fixed part of a zip member's own header."""

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NpzSet:
    """The images of an npz in ADM's layout: arr_0, uint8 [N, H, W, 3]; arr_1, the labels, if it has them.

    arr_0 has to be stored without compression, as numpy's `savez` does, so that any image is one range of the file.
    """

    uri: str
    count: int
    start: int
    """Of the first image in the file, in bytes."""
    shape: tuple[int, int, int]
    """Of an image."""
    labels: Labels | None = field(repr=False)
    crc: int
    """Of arr_0, as the archive states it."""
    plan: SamplePlan | None = field(default=None, repr=False)
    """Of the images, where `foldtrain sample` drew them."""

    @classmethod
    def of(cls, uri: str, most: int | None = None) -> NpzSet:
        """All its images, or the first `most`.

        Raises:
            UsageError: if it is no such file.
        """
        try:
            with storage.open_reader(uri) as file, zipfile.ZipFile(file) as archive:
                start, header, crc = _images(uri, archive)
                labels, plan = _labels(archive), npz_plan(uri, archive)
        except (zipfile.BadZipFile, ValueError, struct.error, KeyError) as error:
            raise UsageError(f"{uri} is no npz of images ({error}): arr_0 has to be uint8 [N, H, W, 3]") from None
        count, *shape = header.shape
        if labels is not None and len(labels) != count:
            raise UsageError(f"{uri}: {len(labels)} labels (arr_1) of {count} images (arr_0)")
        if plan is not None and plan.labels.images != count:
            raise UsageError(f"{uri}: {count} images (arr_0), and {plan.labels.images} in its sampling.json")
        most = count if most is None else min(most, count)
        return cls(uri, most, start, (shape[0], shape[1], shape[2]), labels, crc, plan)

    @property
    def made_by(self) -> dict[str, Any] | None:
        """As `SampledSet.made_by`; None for images of another maker."""
        return None if self.plan is None else self.plan.drawn_by

    def identity(self) -> dict[str, Any]:
        """The archive's own checksum of the images; what they are to the bit is found when they are read."""
        return {"kind": "npz", "crc32": self.crc, "shape": list(self.shape), "count": self.count}

    def open(self, device: torch.device) -> ImageReader:  # noqa: ARG002 - images of files are read anywhere
        """Nothing is read yet."""
        return _NpzReader(self)


def _images(uri: str, archive: zipfile.ZipFile) -> tuple[int, NpyHeader, int]:
    """Where arr_0 begins in the file, its header, its checksum."""
    info = archive.getinfo("arr_0.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise UsageError(f"{uri} is compressed, so images cannot be read from its middle: write it with numpy.savez")
    with archive.open(info) as member:
        header = parse_header(member.read(MOST_START))
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[-1] != 3 or header.is_fortran:
        raise ValueError(f"arr_0 is {header.dtype} {list(header.shape)}")
    header.check_bytes(info.file_size - header.start)
    local = storage.read_range(uri, info.header_offset, _LOCAL_HEADER)
    name, extra = struct.unpack("<HH", local[26:30])
    return info.header_offset + _LOCAL_HEADER + name + extra + header.start, header, info.CRC


def _labels(archive: zipfile.ZipFile) -> Labels | None:
    if "arr_1.npy" not in archive.namelist():
        return None
    with archive.open("arr_1.npy") as member:
        found = np.lib.format.read_array(member, allow_pickle=False)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"arr_1 is {found.dtype} {list(found.shape)}")
    return found.astype(np.int64)


@dataclass(frozen=True)
class _NpzReader:
    images: NpzSet

    def read(self, start: int, stop: int) -> tuple[Pixels, Labels]:
        images = self.images
        size = int(np.prod(images.shape))
        data = storage.read_range(images.uri, images.start + start * size, (stop - start) * size)
        if len(data) != (stop - start) * size:
            raise CorruptShardError(f"{images.uri} ends before image {stop}: it was cut short")
        labels = np.full(stop - start, NO_LABEL) if images.labels is None else images.labels[start:stop]
        return np.frombuffer(data, np.uint8).reshape(stop - start, *images.shape), labels
