"""ILSVRC2012_img_train.tar: a tar that holds one tar per class (n01440764.tar), each with that class's images.

Only headers are read to list it. A tar inside a tar is not compressed, so each image is a range of the outer file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from data_pipeline import storage
from data_pipeline.config import ILSVRCSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.source import (
    ItemReader,
    RawItem,
    check_class_names,
    name_some,
    safe_key,
    unique_items,
)
from data_pipeline.sources.tar_listing import RangeReader, TarListing, in_parallel, list_tar
from data_pipeline.storage.tar import Member


class _Class(NamedTuple):
    """A class, before its images are read."""

    wnid: str
    images: list[Member]
    """Where they lie in the outer file."""


class ILSVRCImages:
    """Images by their range of the outer tar. Classes are wnids, in sorted order."""

    def __init__(self, path: str, classes: list[_Class], skipped: Mapping[str, int]) -> None:
        self.name = path
        self.reader: ItemReader = RangeReader(storage.absolute(path))
        self.skipped = skipped
        self.classes: tuple[str, ...] = tuple(sorted(one.wnid for one in classes))
        labels = {wnid: label for label, wnid in enumerate(self.classes)}
        self.items: Sequence[RawItem] = unique_items(
            path,
            (
                RawItem(
                    key=safe_key(PurePosixPath(image.name).stem),
                    label=labels[one.wnid],
                    size=image.length,
                    name=f"{one.wnid}.tar/{image.name}",
                    offset=image.offset,
                )
                for one in classes
                for image in one.images
            ),
        )

    def identity(self) -> Any:
        """Nothing beyond the names and sizes of the items."""
        return None


def open_ilsvrc(config: ILSVRCSource) -> ILSVRCImages:
    """List the tar of tars.

    Raises:
        UsageError: if it is missing, damaged, empty or not a tar of tars, or a class has no images.
    """
    try:
        outer = list_tar(config.path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"there is no file {config.path}: see data.source in the config") from None
    except tarfile.TarError as error:
        raise UsageError(f"{config.path} is not a tar of one tar per class, or is damaged ({error})") from error
    parts = [member for member, _ in outer.files]
    _check_parts(config.path, parts)
    classes = []
    listings = in_parallel(lambda part: _list_class(config.path, part), parts)
    for part, (images, skipped) in zip(parts, listings, strict=True):
        classes.append(_Class(_wnid(part), [image for image, _ in images]))
        outer.skipped.update(skipped)
    if not config.allow_empty_classes:
        _check_images(config.path, classes)
    return ILSVRCImages(config.path, classes, outer.skipped.counts())


def _wnid(part: Member) -> str:
    return PurePosixPath(part.name).stem


def _check_parts(path: str, parts: Sequence[Member]) -> None:
    seen: dict[str, str] = {}
    for part in parts:
        if PurePosixPath(part.name).suffix.lower() != ".tar":
            raise UsageError(f"{path} should hold one tar per class, but holds {part.name}")
        other = seen.setdefault(_wnid(part), part.name)
        if other is not part.name:
            raise UsageError(f"{path} holds {other} and {part.name}: a class has one tar, so leave one of them out")
    check_class_names(path, seen)


def _list_class(path: str, part: Member) -> TarListing:
    where = f"{path}: {part.name}"
    try:
        return list_tar(path, part.offset, part.length, where=where)
    except tarfile.TarError as error:
        raise UsageError(f"{where} is not a tar of the images of one class, or is damaged ({error})") from error


def _check_images(path: str, classes: Sequence[_Class]) -> None:
    """Labels follow from the sorted tars, so that a tar more or less shifts those of all after it."""
    empty = sorted(one.wnid for one in classes if not one.images)
    if empty:
        raise UsageError(
            f"{path}: class tars without images ({len(empty)}): {name_some(f'{wnid}.tar' for wnid in empty)}. Make the "
            "tar again with their images; or set data.source.allow_empty_classes=true: they keep their labels, without "
            "images"
        )
