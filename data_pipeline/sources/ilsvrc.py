"""ILSVRC2012_img_train.tar: a tar that holds one tar per class (n01440764.tar), each with that class's images.

Only headers are read to list it. A tar inside a tar is not compressed, so each image is a range of the outer file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import PurePosixPath

from data_pipeline import storage
from data_pipeline.config import ILSVRCSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.parts import in_parallel, stamp_files
from data_pipeline.sources.skipped import add_counts
from data_pipeline.sources.source import (
    Facts,
    ItemReader,
    RawItem,
    Take,
    check_class_names,
    name_some,
    safe_key,
)
from data_pipeline.sources.tar_listing import RangeReader, TarListing, list_tar
from data_pipeline.storage.tar import Member


class ILSVRCImages:
    """Images by their range of the outer tar. Classes are wnids, in sorted order."""

    prefixes = False

    def __init__(self, config: ILSVRCSource) -> None:
        self._config = config
        self.name = config.path
        self.reader: ItemReader = RangeReader(storage.absolute(config.path))

    def stamp(self) -> str:
        """Of the tar and the config."""
        return stamp_files(self._config, storage.absolute(self.name), [""])

    def scan(self, take: Take) -> Facts:
        """List the tar of tars.

        Raises:
            UsageError: if it is missing, damaged, empty or not a tar of tars, or a class has no images.
        """
        outer = self._list_outer()
        parts = [member for member, _ in outer.files]
        _check_parts(self.name, parts)
        classes = tuple(sorted(map(_wnid, parts)))
        labels = {wnid: label for label, wnid in enumerate(classes)}
        skipped, empty = outer.skipped.counts(), []
        for part, inner in zip(parts, in_parallel(self.name, self._list_class, parts), strict=True):
            wnid = _wnid(part)
            skipped = add_counts([skipped, inner.skipped.counts()])
            if not inner.files:
                empty.append(wnid)
            take([_item(wnid, labels[wnid], image) for image, _ in inner.files])
        if not self._config.allow_empty_classes:
            _check_empty(self.name, sorted(empty))
        return Facts(classes, skipped)

    def _list_outer(self) -> TarListing:
        try:
            return list_tar(self.name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise UsageError(f"there is no file {self.name}: see data.source in the config") from None
        except tarfile.TarError as error:
            raise UsageError(f"{self.name} is not a tar of one tar per class, or is damaged ({error})") from error

    def _list_class(self, part: Member) -> TarListing:
        where = f"{self.name}: {part.name}"
        try:
            return list_tar(self.name, part.offset, part.length, where=where)
        except tarfile.TarError as error:
            raise UsageError(f"{where} is not a tar of the images of one class, or is damaged ({error})") from error


def _item(wnid: str, label: int, image: Member) -> RawItem:
    key = safe_key(PurePosixPath(image.name).stem)
    return RawItem(key, label, image.length, f"{wnid}.tar/{image.name}", image.offset)


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


def _check_empty(path: str, empty: Sequence[str]) -> None:
    """Labels follow from the sorted tars, so that a tar more or less shifts those of all after it."""
    if empty:
        raise UsageError(
            f"{path}: class tars without images ({len(empty)}): {name_some(f'{wnid}.tar' for wnid in empty)}. Make the "
            "tar again with their images; or set data.source.allow_empty_classes=true: they keep their labels, without "
            "images"
        )
