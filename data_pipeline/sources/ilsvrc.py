"""ILSVRC2012_img_train.tar: a tar that holds one tar per class (n01440764.tar), each with that class's images.

Only headers are read to list it. A tar inside a tar is not compressed, so each image is a range of the outer file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from data_pipeline import storage
from data_pipeline.config import ILSVRCSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.source import ItemReader, RawItem, safe_key, unique_items
from data_pipeline.sources.tar_listing import RangeReader, in_parallel, list_tar


class ILSVRCImages:
    """Images by their range of the outer tar. Classes are wnids, in sorted order."""

    def __init__(self, path: str, images: list[tuple[str, str, int, int]]) -> None:
        self.name = path
        self.reader: ItemReader = RangeReader(storage.absolute(path))
        self.classes: tuple[str, ...] = tuple(sorted({wnid for wnid, _, _, _ in images}))
        labels = {wnid: label for label, wnid in enumerate(self.classes)}
        self.items: Sequence[RawItem] = unique_items(
            path,
            (
                RawItem(
                    key=safe_key(PurePosixPath(name).stem),
                    label=labels[wnid],
                    size=size,
                    name=f"{wnid}.tar/{name}",
                    offset=offset,
                )
                for wnid, name, offset, size in images
            ),
        )

    def identity(self) -> Any:
        """Nothing beyond the names and sizes of the items."""
        return None


def open_ilsvrc(config: ILSVRCSource) -> ILSVRCImages:
    """List the tar of tars.

    Raises:
        UsageError: if it is missing, damaged, empty or not a tar of tars.
    """
    try:
        return ILSVRCImages(config.path, list(_list_images(config.path)))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"there is no file {config.path}: see data.source in the config") from None
    except tarfile.TarError as error:
        raise UsageError(f"{config.path} is not a tar of one tar per class, or is damaged ({error})") from error


def _list_images(path: str) -> Iterator[tuple[str, str, int, int]]:
    """(wnid, file name, offset in the outer file, bytes) of every image."""
    parts = [member for member, _ in list_tar(path)]
    for part in parts:
        if PurePosixPath(part.name).suffix != ".tar":
            raise UsageError(f"{path} should hold one tar per class, but holds {part.name}")
    inner = in_parallel(lambda part: list_tar(path, part.offset, part.length), parts)
    for part, members in zip(parts, inner, strict=True):
        for member, _ in members:
            yield PurePosixPath(part.name).stem, member.name, member.offset, member.length
