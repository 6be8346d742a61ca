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
from data_pipeline.sources.source import RawItem, safe_key, unique_items


class ILSVRCImages:
    """Images by their range of the outer tar. Classes are wnids, in sorted order."""

    def __init__(self, path: str, images: list[tuple[str, str, int, int]]) -> None:
        self.name = path
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

    def read(self, item: RawItem) -> bytes:
        """The image's file, by one range read."""
        return storage.read_range(self.name, item.offset, item.size)


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
    with storage.open_reader(path) as file, tarfile.open(fileobj=file, mode="r:") as outer:
        for part in outer:
            if not part.isfile():
                continue
            if PurePosixPath(part.name).suffix != ".tar":
                raise UsageError(f"{path} should hold one tar per class, but holds {part.name}")
            wnid = PurePosixPath(part.name).stem
            inner_file = outer.extractfile(part)
            assert inner_file is not None, part.name
            with inner_file, tarfile.open(fileobj=inner_file, mode="r:") as inner:
                for member in inner:
                    if member.isfile():
                        yield wnid, member.name, part.offset_data + member.offset_data, member.size
