"""A decoded picture from which squares are cut, after ADM's resize (arXiv 2105.05233, as published with its code).

`ExactPicture` computes what Pillow computes, bit for bit, unless a picture is hundreds of times as long as wide.
`FastPicture` does the same resize on other arithmetic: a JPEG file is halved while it is decoded instead of with a box
filter afterwards, and only the square is resized.
Shape suffixes: H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from data_pipeline.images.decoding import MOST_HALVINGS, JpegHeader, Pixels, decode, decode_jpeg, plain_jpeg

MOST_RESIZED_PIXELS = 2**24
"""A picture that would be larger after its resize, because it is long and narrow, is not resized as a whole."""


class Square(NamedTuple):
    """A square of a picture whose short side was resized, all in pixels."""

    short: int
    """Short side of the resized picture."""
    left: int
    top: int
    side: int


class Picture(Protocol):
    """What squares can be cut from."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright, in pixels."""

    def cut(self, square: Square) -> Pixels:
        """One square after ADM's resize, uint8 [side, side, 3]."""

    def whole(self) -> Image.Image:
        """All of it, upright, as it was decoded."""


def halvings(width: int, height: int, short: int) -> int:
    """How often ADM halves a picture with a box filter: while the short side is at least twice the target."""
    return max(0, (min(width, height) // short).bit_length() - 1)


def resized_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height of a picture after ADM's resize to a short side."""
    times = halvings(width, height, short)
    width, height = width >> times, height >> times
    scale = short / min(width, height)
    return round(width * scale), round(height * scale)


def resize(image: Image.Image, short: int) -> Image.Image:
    """ADM's resize: halve with a box filter as often as `halvings` says, then go to the target with a bicubic one."""
    size = resized_size(image.width, image.height, short)
    return _halve(image, short).resize(size, Image.Resampling.BICUBIC)


def _halve(image: Image.Image, short: int) -> Image.Image:
    for _ in range(halvings(image.width, image.height, short)):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


@dataclass(frozen=True)
class ExactPicture:
    """A picture in Pillow's arithmetic."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright, in pixels."""
        return self.image.size

    def cut(self, square: Square) -> Pixels:
        """One square, uint8 [side, side, 3]."""
        short, left, top, side = square
        resized = resized_size(*self.image.size, short)
        if math.prod(resized) > MOST_RESIZED_PIXELS:
            return _cut_alone(_halve(self.image, short), resized, (left, top), side, Image.Resampling.BICUBIC)
        return np.asarray(resize(self.image, short).crop((left, top, left + side, top + side)))

    def whole(self) -> Image.Image:
        """All of it, upright."""
        return self.image


def cut_resized(
    image: Image.Image, resized: tuple[int, int], place: tuple[int, int], side: int, kernel: Image.Resampling
) -> Pixels:
    """A square of an image that is resized by one filter of Pillow's, uint8 [side, side, 3].

    Args:
        image: the picture, RGB.
        resized: width and height that it is resized to.
        place: left and top of the square in the result.
        side: of the square.
        kernel: Pillow's filter.
    """
    if math.prod(resized) > MOST_RESIZED_PIXELS:
        return _cut_alone(image, resized, place, side, kernel)
    left, top = place
    return np.asarray(image.resize(resized, kernel).crop((left, top, left + side, top + side)))


def _cut_alone(
    image: Image.Image, resized: tuple[int, int], place: tuple[int, int], side: int, kernel: Image.Resampling
) -> Pixels:
    """What a resize and a crop give, but for a level in the last place: only what is kept is resized.

    A picture of 1 x 60000 pixels would become one of 256 x 15 million.
    """
    columns = _span(place[0], side, image.width, resized[0], _REACH[kernel])
    rows = _span(place[1], side, image.height, resized[1], _REACH[kernel])
    part = image.crop((columns.start, rows.start, columns.stop, rows.stop))
    across, down = (columns.box[0], 0, columns.box[1], part.height), (0, rows.box[0], side, rows.box[1])
    narrow = part.resize((side, part.height), kernel, box=across)
    return np.asarray(narrow.resize((side, side), kernel, box=down))


_REACH = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2, Image.Resampling.LANCZOS: 3}
"""Pixels of the smaller picture that each filter reads on either side."""


class _Span(NamedTuple):
    """What a resize reads of a side of a picture, in pixels."""

    start: int
    stop: int
    box: tuple[float, float]
    """The part that is resized, from `start` on; the filter reads some pixels around it."""


def _span(first: int, count: int, size: int, resized: int, reach: int) -> _Span:
    scale = size / resized
    begin, end = first * scale, min((first + count) * scale, size)
    margin = math.ceil(reach * max(1.0, scale)) + 1
    start, stop = max(0, math.floor(begin) - margin), min(size, math.ceil(end) + margin)
    return _Span(start, stop, (begin - start, end - start))


class Turn(NamedTuple):
    """How a stored picture becomes upright: rows and columns exchanged, then each of them reversed."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def upright(self, pixels_HWC: Pixels) -> Pixels:
        """Stored pixels, upright."""
        if self.transposed:
            pixels_HWC = pixels_HWC.transpose(1, 0, 2)
        return pixels_HWC[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]

    def stored(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Where a box of the upright picture is in the stored one; in shares of the picture's sides."""
        left = 1 - left - width if self.columns_reversed else left
        top = 1 - top - height if self.rows_reversed else top
        return (top, left, height, width) if self.transposed else (left, top, width, height)


TURNS = {
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}
"""By EXIF orientation; all others are upright."""


@dataclass(frozen=True)
class FastPicture:
    """A JPEG picture as it is stored, perhaps halved."""

    header: JpegHeader
    pixels_HWC: Pixels
    halvings: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright, in pixels."""
        size = self.header.width, self.header.height
        return size[::-1] if self._turn.transposed else size

    @property
    def _turn(self) -> Turn:
        return TURNS.get(self.header.orientation, Turn())

    def cut(self, square: Square) -> Pixels:
        """One square, uint8 [side, side, 3]."""
        resized_width, resized_height = resized_size(*self.size, square.short)
        left, top, across, down = self._turn.stored(
            square.left / resized_width,
            square.top / resized_height,
            square.side / resized_width,
            square.side / resized_height,
        )
        # Halved sides are rounded up: the picture itself ends at a fraction of the last pixel.
        width, height = (side / (1 << self.halvings) for side in (self.header.width, self.header.height))
        box = left * width, top * height, across * width, down * height
        return self._turn.upright(_bicubic(self.pixels_HWC, box, square.side, not self._turn.transposed))

    def whole(self) -> Image.Image:
        """All of it, upright, as it was decoded."""
        return Image.fromarray(np.ascontiguousarray(self._turn.upright(self.pixels_HWC)))


def _bicubic(pixels_HWC: Pixels, box: tuple[float, float, float, float], side: int, rows_first: bool) -> Pixels:
    """A box (left, top, width, height) of a picture, resized to a square by Pillow's bicubic filter.

    Pillow resizes along rows, then along columns, with bytes between. The library does columns first, which is 18 dB
    further from Pillow, so that rows first takes two calls.
    """
    from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    height, width = pixels_HWC.shape[:2]
    left, across = _within(box[0], box[2], width)
    top, down = _within(box[1], box[3], height)
    resizer, bicubic = Resizer(), ResizeAlg.convolution(FilterType.catmull_rom)
    picture = ImageData(width, height, PixelType.U8x3, pixels_HWC.tobytes())
    if rows_first:
        narrow = ImageData(side, height, PixelType.U8x3)
        resizer.resize(picture, narrow, ResizeOptions(resize_alg=bicubic, crop_box=CropBox(left, 0, across, height)))
        picture, left, across = narrow, 0, side
    square = ImageData(side, side, PixelType.U8x3)
    resizer.resize(picture, square, ResizeOptions(resize_alg=bicubic, crop_box=CropBox(left, top, across, down)))
    return np.frombuffer(square.get_buffer(), np.uint8).reshape(side, side, 3)


def _within(start: float, length: float, limit: int) -> tuple[float, float]:
    """A span in multiples of 2**-20, so that its end is computed without an error that would lie past the limit."""
    first = max(0, math.floor(start * 2**20))
    return first / 2**20, min(math.floor(length * 2**20), limit * 2**20 - first) / 2**20


class Pictures:
    """An image file, decoded once for each scale at which squares are cut from it."""

    def __init__(self, data: bytes, decode: str) -> None:
        self._data, self._decode = data, decode
        self._header = plain_jpeg(data) if decode == "fast" else None
        self._opened: dict[int, Picture] = {}

    def at(self, short: int) -> Picture:
        """The picture for squares whose short side is at least this one.

        Raises:
            ValueError: if the file cannot be decoded in full.
        """
        header = self._header
        times = min(MOST_HALVINGS, halvings(header.width, header.height, short)) if header else 0
        if times not in self._opened:
            self._opened[times] = DECODERS[self._decode](self._data, short)
        return self._opened[times]


def open_exact(data: bytes, _short: int) -> Picture:
    """Any image file, by Pillow.

    Raises:
        ValueError: if it cannot be decoded in full.
    """
    return ExactPicture(decode(data))


def open_fast(data: bytes, short: int) -> Picture:
    """A plain JPEG file, halved as far as squares whose `short` is at least this one allow; any other file by Pillow.

    Raises:
        ValueError: if it cannot be decoded in full.
    """
    header = plain_jpeg(data)
    if header is not None:
        times = min(MOST_HALVINGS, halvings(header.width, header.height, short))
        pixels_HWC = decode_jpeg(data, header, times)
        if pixels_HWC is not None:
            return FastPicture(header, pixels_HWC, times)
    return open_exact(data, short)


DECODERS: dict[str, Callable[[bytes, int], Picture]] = {"exact": open_exact, "fast": open_fast}
"""By `decode` of the config: from an image file, and the least short side of the squares to be cut, to a picture."""
