"""Pairs of idx files (MNIST and its kin). An idx image has no file of its own: it becomes a PNG, losslessly."""

from __future__ import annotations

import gzip
import importlib.resources
import io
import math
import zlib
from dataclasses import dataclass
from typing import IO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline import storage
from data_pipeline.config import IdxSource
from data_pipeline.errors import NotAFileError, UsageError
from data_pipeline.sources.source import Facts, ItemReader, RawItem, Take

_EMBEDDED = "embedded:"
_UNSIGNED_BYTE = 8
MOST_BYTES = 2**30
"""Largest file, unpacked: it is held in memory."""
_ITEMS_AT_ONCE = 16_384


@dataclass(frozen=True)
class PixelReader:
    """Makes files of pixels. It holds all of them: idx sets are small."""

    images: npt.NDArray[np.uint8]
    """[N, H, W]."""

    def read(self, item: RawItem) -> bytes:
        """The image as a PNG."""
        buffer = io.BytesIO()
        Image.fromarray(self.images[item.offset]).save(buffer, format="PNG")
        return buffer.getvalue()


class IdxImages:
    """Grey images in memory, with keys that are zero-padded numbers."""

    prefixes = False

    def __init__(self, config: IdxSource) -> None:
        images = _read_array(config.images, dimensions=3)
        self._labels = _read_array(config.labels, dimensions=1)
        if len(images) != len(self._labels):
            raise UsageError(
                f"{config.images} holds {len(images)} images, but {config.labels} holds {len(self._labels)} labels"
            )
        if not images.size:
            raise UsageError(f"{config.images} holds no images")
        self._config, self._images = config, images
        self.name = config.images
        self.reader: ItemReader = PixelReader(images)

    def stamp(self) -> str:
        """Of the pixels, the labels and the config: they are read anyway."""
        content = [self._digest(), storage.sha256(self._labels.tobytes())]
        return storage.fingerprint([self._config.model_dump(mode="json"), *content])

    def scan(self, take: Take) -> Facts:
        """List both files.

        Raises:
            UsageError: if classes are named, but not all.
        """
        config, count = self._config, int(self._labels.max()) + 1
        if config.classes is not None and len(config.classes) < count:
            raise UsageError(
                f"{config.labels} has labels up to {count - 1}, but {len(config.classes)} classes are named"
            )
        size = self._images[0].size
        for start in range(0, len(self._labels), _ITEMS_AT_ONCE):
            labels = enumerate(self._labels[start : start + _ITEMS_AT_ONCE].tolist(), start)
            take([RawItem(f"{number:08d}", label, size, f"image {number}", number) for number, label in labels])
        return Facts(config.classes or tuple(str(label) for label in range(count)), {}, self._digest())

    def _digest(self) -> str:
        return storage.sha256(self._images.tobytes())


def _read_array(uri: str, dimensions: int) -> npt.NDArray[np.uint8]:
    """A file of unsigned bytes with the given number of dimensions: magic 00 00 08 n, n big-endian sizes, the data.

    No more is unpacked of it than its sizes ask for.
    """
    start = 4 + 4 * dimensions
    with _opened(uri) as file:
        head = _read(uri, file, start)
        if len(head) < start or head[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
            raise UsageError(f"{uri} is not an idx{dimensions} file of unsigned bytes")
        shape = tuple(int(side) for side in np.frombuffer(head, ">u4", dimensions, offset=4))
        size = math.prod(shape)
        if size > MOST_BYTES:
            raise UsageError(f"{uri} says that its shape is {shape}, which is more than {MOST_BYTES} bytes in all")
        data = _read(uri, file, size + 1)  # behind the last byte gzip has a checksum
    if len(data) != size:
        held = f"more than {size}" if len(data) > size else str(len(data))
        raise UsageError(f"{uri} says that its shape is {shape}, but holds {held} bytes: it was cut or damaged")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _opened(uri: str) -> IO[bytes]:
    """The file's content, unpacked as it is read."""
    try:
        if uri.startswith(_EMBEDDED):
            root = importlib.resources.files("data_pipeline") / "embedded"
            data = root.joinpath(*uri.removeprefix(_EMBEDDED).split("/")).read_bytes()
        else:
            data = storage.read_bytes(uri, MOST_BYTES)
    except NotAFileError:  # it says what there is
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"there is no idx file {uri}: see data.source in the config") from None
    if data[:2] != b"\x1f\x8b":
        return io.BytesIO(data)
    return cast("IO[bytes]", gzip.GzipFile(fileobj=io.BytesIO(data)))


def _read(uri: str, file: IO[bytes], size: int) -> bytes:
    try:
        return file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{uri} is a damaged gzip file ({error}): fetch it again") from error
