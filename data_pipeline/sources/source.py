"""What every source of raw images offers, and how keys are spelled."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from PIL import Image

from data_pipeline.errors import UsageError
from data_pipeline.storage import sha256

MAX_KEY_BYTES = 90
"""With an extension it still fits the name field of a plain tar header."""

_EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # what Pillow calls a JPEG that carries further pictures
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "PPM": "ppm",
}
_FORMATS = tuple(name for name in _EXTENSIONS if name != "MPO")


class RawItem(NamedTuple):
    """One image of a source, before its bytes are read."""

    key: str
    """Its name from now on: unique, without dots."""
    label: int
    """Its class."""
    size: int
    """Its bytes in the source."""
    name: str
    """What the source calls it, for messages."""
    offset: int = 0
    """Where it lies in the source's file, where that is one file."""


class ImageSource(Protocol):
    """A set of raw images, listed in an order that depends on nothing but their names."""

    name: str
    """Where it is, for messages."""
    classes: tuple[str, ...]
    """Class names by label."""
    items: Sequence[RawItem]
    """The images."""

    def identity(self) -> Any:
        """What tells this source's content from another's, as far as it can be had without reading it all; JSON."""

    def read(self, item: RawItem) -> bytes:
        """An image's file, as it is in the source."""


def safe_key(name: str) -> str:
    """A key for a file's relative name without its extension: no dots or blanks, and short enough for a tar header."""
    key = re.sub(r"[^\w/-]", "_", name)
    if len(key.encode()) > MAX_KEY_BYTES:
        start = key.encode()[: MAX_KEY_BYTES - 17].decode(errors="ignore")
        key = f"{start}_{sha256(name.encode())[:16]}"
    return key


def unique_items(source: str, items: Iterable[RawItem]) -> list[RawItem]:
    """The items, sorted by key.

    Raises:
        UsageError: if there are none, or two have the same key.
    """
    ordered = sorted(items)
    if not ordered:
        raise UsageError(f"{source} holds no images")
    for one, other in pairwise(ordered):
        if one.key == other.key:
            raise UsageError(f"{source}: {one.name} and {other.name} would both have the key {one.key}: rename one")
    return ordered


def image_extension(data: bytes, source: str, item: RawItem) -> str:
    """The extension that an image's content asks for, whatever its name says.

    Raises:
        UsageError: if it is empty or no image.
    """
    where = f"{source}: {item.name} (key {item.key})"
    if not data:
        raise UsageError(f"{where} is empty: remove it or replace it")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _EXTENSIONS[str(image.format)]
    except Exception as error:  # Pillow raises many kinds on bytes that are not what they seem
        raise UsageError(
            f"{where} is not an image that can be read ({type(error).__name__}): remove it or replace it"
        ) from error
