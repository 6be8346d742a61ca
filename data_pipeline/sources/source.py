"""What every source of raw images offers, and how keys are spelled."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from PIL import Image, UnidentifiedImageError

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
    """Its bytes in the source; of a parquet file, an even share of its row group."""
    name: str
    """What the source calls it, for messages."""
    offset: int = 0
    """Where it lies in the source's file (bytes), or in its block (rows)."""
    part: str = ""
    """The source's file that holds it, where there are several."""
    block: int = -1
    """Of images that are read together: which block of its part holds it. -1: it can be read alone."""


class ItemReader(Protocol):
    """Reads images without the source's listing. It can be pickled, and has no state but what it keeps to be fast."""

    def read(self, item: RawItem) -> bytes:
        """An image's file, as it is in the source; fast if the images of a block are asked for together."""


class ImageSource(Protocol):
    """A set of raw images, listed in an order that depends on nothing but their names."""

    name: str
    """Where it is, for messages."""
    classes: tuple[str, ...]
    """Class names by label."""
    items: Sequence[RawItem]
    """The images."""
    reader: ItemReader
    """Reads them, in any process."""

    def identity(self) -> Any:
        """What tells this source's content from another's, as far as it can be had without reading it all; JSON."""


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


def image_extension(data: bytes) -> str:
    """The extension that an image's content asks for, whatever its name says.

    Raises:
        ValueError: if it is empty or no image; it says why.
    """
    if not data:
        raise ValueError("is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _EXTENSIONS[str(image.format)]
    except UnidentifiedImageError:  # its text has an address in it, which differs from run to run
        raise ValueError(f"is not an image that can be read ({', '.join(_FORMATS)})") from None
    except Exception as error:  # Pillow raises many kinds on bytes that are not what they seem
        raise ValueError(f"is not an image that can be read ({type(error).__name__}: {error})") from error
