"""Is an image of a source whole? Every one is decoded before it is stored; one that cannot be goes to quarantine."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from data_pipeline.errors import UsageError
from data_pipeline.images.decoding import decode, image_extension
from data_pipeline.shards.image_shards import ImageSample, Quarantined
from data_pipeline.sources import ItemReader, RawItem

READING_THREADS = 8
"""Images that are read at a time, while one is decoded."""
MOST_BYTES = 2**28
"""A larger file is set aside unread: the largest picture that is taken has fewer bytes when it is unpacked."""
_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")
"""How an object without a name is printed: it differs from run to run."""


def screen_items(
    reader: ItemReader, items: Sequence[RawItem], progress: Callable[[int], None]
) -> tuple[list[ImageSample], list[Quarantined]]:
    """Read and decode images. Blocks are read one after another; the results are in the order of the items.

    Args:
        reader: of the items' source.
        items: which images.
        progress: called with 1 after each image.
    """
    order = sorted(range(len(items)), key=lambda number: (items[number].part, items[number].block))
    has_blocks = any(item.block >= 0 for item in items)  # two threads would fetch the same block twice
    seen: dict[int, ImageSample | Quarantined] = {}
    with ThreadPoolExecutor(1 if has_blocks else READING_THREADS, thread_name_prefix="reading") as pool:
        files = pool.map(lambda number: _read(reader, items[number]), order)
        for number, data in zip(order, files, strict=True):
            seen[number] = screen_image(items[number], data)
            progress(1)
    results = [seen[number] for number in range(len(items))]
    good = [result for result in results if isinstance(result, ImageSample)]
    return good, [result for result in results if isinstance(result, Quarantined)]


def _read(reader: ItemReader, item: RawItem) -> bytes | None:
    """An image's file; None if it is too large to be read."""
    if item.size > MOST_BYTES:
        return None
    try:
        return reader.read(item)
    except FileNotFoundError as error:
        raise UsageError(
            f"{item.name} (key {item.key}) was there when the source was listed, but is gone now: {error}. "
            "Run foldtrain ingest again with a source that does not change"
        ) from error


def screen_image(item: RawItem, data: bytes | None) -> ImageSample | Quarantined:
    """The image as it is stored, or why it cannot be: it is empty, cut, damaged, too large, or no image."""
    if data is None or len(data) > MOST_BYTES:
        return Quarantined(item.key, item.name, f"has {item.size} bytes, more than {MOST_BYTES}")
    try:
        extension = image_extension(data)
        decode(data)
    except ValueError as error:
        if isinstance(error.__cause__, MemoryError):  # this machine's fault, not the image's
            raise error.__cause__ from error
        return Quarantined(item.key, item.name, _ADDRESS.sub("", str(error)))
    return ImageSample(item.key, item.label, extension, data)
