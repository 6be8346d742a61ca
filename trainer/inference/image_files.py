"""Image files that a command is given: found, and read as squares of a network's size, some at a time.

A file may be in any format that ingest takes. A large one is cut down before the next is opened, so that memory holds
one picture and the squares of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from torch import Tensor

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.images.decoding import decode
from data_pipeline.text.counted import counted
from data_pipeline.text.names import check_name
from trainer.inference.given_images import Fit, read_images

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2")
"""Of the files that are taken from a folder. A file that is named is taken whatever it is called."""
MOST_FILE_BYTES = 256 * 2**20
"""Of an image file."""


@dataclass(frozen=True)
class ImageFiles:
    """What was found."""

    names: tuple[str, ...]
    """As people know them: the file's name, or its path below the folder that was given."""
    uris: tuple[str, ...]
    """Where they are, in the same order."""
    others: int
    """Files of the folders that no image is called as; they are left aside."""


def find_images(places: Sequence[str]) -> ImageFiles:
    """The images of files and folders, at any URI, in the order given; those of a folder by name.

    Raises:
        UsageError: if there is no such place, or a folder holds no images.
    """
    found: list[tuple[str, str]] = []
    others = 0
    for place in (each.rstrip("/") or "/" for each in places):
        names = storage.walk(place) if storage.list_names(place) else {}
        if not names and not storage.exists(place):
            raise UsageError(f"{place}: there is no such image, and no folder with images")
        taken = [name for name in names if name.lower().endswith(ENDINGS)]
        if names and not taken:
            raise UsageError(f"{place} holds {counted(len(names), 'file')}, and none ends in {', '.join(ENDINGS)}")
        others += len(names) - len(taken)
        found += [(name, storage.join(place, name)) for name in taken] if names else [(place.rpartition("/")[2], place)]
    return ImageFiles(tuple(name for name, _ in found), tuple(uri for _, uri in found), others)


def read_square(uri: str, size: int, fit: Fit) -> Tensor:
    """One image file as a network takes it, float32 [1, 3, size, size] in [-1, 1].

    Raises:
        UsageError: if there is no such file.
        FoldtrainError: if it is no image that can be decoded; it names the file.
    """
    try:
        return read_images(decode(storage.read_bytes(uri, MOST_FILE_BYTES)), size, fit)
    except FileNotFoundError:
        raise UsageError(f"there is no image {uri}") from None
    except ValueError as error:
        raise FoldtrainError(f"{uri} {error}") from None


def read_batches(images: ImageFiles, size: int, fit: Fit, batch: int) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Names and images [B, 3, size, size], `batch` at a time; the last may be fewer.

    Raises:
        UsageError, FoldtrainError: as `read_square`.
    """
    for start in range(0, len(images.uris), batch):
        part = slice(start, start + batch)
        yield images.names[part], torch.cat([read_square(uri, size, fit) for uri in images.uris[part]])


def png_names(names: Sequence[str]) -> list[str]:
    """What PNG files of images are called: as the image, in the same folders; a second of a name gets a number.

    Raises:
        UsageError: if a name would lead out of the folder; names may come from files that anybody has written.
    """
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        try:
            stem = str(PurePosixPath(check_name(name)).with_suffix(""))
        except ValueError as error:
            raise UsageError(f"an image has a name that cannot be a file's: {error}") from None
        seen[stem] += 1
        found.append(f"{stem}.png" if seen[stem] == 1 else f"{stem}-{seen[stem]}.png")
    if len(set(found)) != len(found):
        raise UsageError("two images would be written to one file: rename one of those that differ in a number alone")
    return found
