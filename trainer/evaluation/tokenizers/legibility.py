"""Whether rendered text can still be read in reconstructions: a small probe of the fine detail that a tokenizer keeps.

1. words of drawn letters and digits are written black on white, each character in a cell of its own (Pillow's default
   font); every text follows from the seed, the size and the image's number
2. the tokenizer reconstructs the image
3. in each cell the character is read whose own picture is the most alike (correlation of pixels, so neither brightness
   nor contrast matter)

The share of characters that are read right, a mean over pages, stands beside that of the originals, which is 1; who
guesses reads 1/36. What it does not say: where text lies is known, words have no meaning that could help, and such
images are far from those that most tokenizers were trained on. Compare tokenizers that were trained on the same images.

Shapes: B images, N characters, S symbols, H height, W width.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Pixels
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.tokenizers.tokenizer_numbers import with_protocol
from trainer.metrics.means import RowMeans

SYMBOLS = string.ascii_lowercase + string.digits
SIZES = (8, 12, 16)
"""Of text, in pixels."""
_WORD = (2, 8)
"""Characters of a word: from the first number to one less than the second."""
_BATCH = 32

Array = npt.NDArray[np.float64]
Reconstruct = Callable[[Pixels], npt.NDArray[np.floating]]
"""Images uint8 [B, H, W, 3] -> reconstructions [B, H, W, 3], on any scale of brightness."""


@dataclass(frozen=True)
class Page:
    """A text on an image, character by character."""

    pixels_HWC: Pixels
    symbol_N: npt.NDArray[np.int64]
    """Number of each character among SYMBOLS."""
    corner_N2: npt.NDArray[np.int64]
    """Top and left of each character's cell."""


@dataclass(frozen=True)
class Font:
    """Cells of a size of Pillow's default font."""

    size: int
    """In pixels."""
    height: int
    width: int
    """Of a cell, in which every symbol lies whole."""
    glyph_SHW: Pixels
    """Each symbol in its cell, black on white."""


@cache
def font_of(size: int) -> Font:
    """The symbols of a size, each in the middle of its cell."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    boxes = [font.getbbox(symbol) for symbol in SYMBOLS]
    top, bottom = math.floor(min(box[1] for box in boxes)), math.ceil(max(box[3] for box in boxes))
    width = math.ceil(max(box[2] - box[0] for box in boxes)) + 1
    glyphs = []
    for symbol, box in zip(SYMBOLS, boxes, strict=True):
        cell = Image.new("L", (width, bottom - top + 1), 255)
        left = (width - (box[2] - box[0])) // 2 - box[0]
        ImageDraw.Draw(cell).text((left, -top), symbol, fill=0, font=font)
        glyphs.append(np.asarray(cell))
    return Font(size, bottom - top + 1, width, np.stack(glyphs))


def sizes_that_fit(image_size: int) -> tuple[int, ...]:
    """Of `SIZES` those of which at least a word of two characters fits into an image.

    Raises:
        UsageError: if there is none.
    """
    fonts = [font_of(size) for size in SIZES]
    found = tuple(font.size for font in fonts if max(font.height, _WORD[0] * font.width) <= image_size)
    if not found:
        raise UsageError(f"text of {SIZES[0]} pixels does not fit into images of {image_size}: measure larger ones")
    return found


def page(image_size: int, size: int, seed: int, number: int) -> Page:
    """Words of drawn characters that fill an image.

    Args:
        image_size: side of the image, in pixels.
        size: of the font, in pixels.
        seed: of all pages.
        number: of the page; with seed and size it decides the text.

    Raises:
        UsageError: if not even a character fits.
    """
    font, random = font_of(size), np.random.default_rng([seed, size, number])
    rows, columns = image_size // font.height, image_size // font.width
    if not rows or not columns:
        raise UsageError(f"text of {size} pixels needs cells of {font.width} x {font.height}: give a smaller size")
    pixels_HW = np.full((image_size, image_size), 255, np.uint8)
    symbols, corners = [], []
    for row in range(rows):
        for column in _columns(columns, random):
            symbol, top, left = int(random.integers(len(SYMBOLS))), row * font.height, column * font.width
            pixels_HW[top : top + font.height, left : left + font.width] = font.glyph_SHW[symbol]
            symbols.append(symbol)
            corners.append((top, left))
    pixels_HWC = np.repeat(pixels_HW[..., None], 3, axis=2)
    return Page(pixels_HWC, np.array(symbols, np.int64), np.array(corners, np.int64))


def _columns(count: int, random: np.random.Generator) -> Iterator[int]:
    """Cells of a line that have a character: words, with an empty cell after each."""
    start = 0
    while start < count:
        length = int(random.integers(*_WORD))
        yield from range(start, min(start + length, count))
        start += length + 1


def read(image_HWC: npt.NDArray[np.floating] | Pixels, corner_N2: npt.NDArray[np.int64], size: int) -> npt.NDArray[Any]:
    """The character that is read in each cell [N]: the symbol of the largest correlation."""
    font = font_of(size)
    grey_HW = np.asarray(image_HWC, dtype=np.float64).mean(axis=2)
    cells = [grey_HW[top : top + font.height, left : left + font.width] for top, left in corner_N2]
    templates_SX = _standardized(font.glyph_SHW.reshape(len(SYMBOLS), -1))
    found: npt.NDArray[Any] = (_standardized(np.stack(cells).reshape(len(cells), -1)) @ templates_SX.T).argmax(axis=1)
    return found


def _standardized(rows_NX: npt.NDArray[Any]) -> Array:
    """Without their mean, at length one; zeros where nothing is left."""
    centred_NX = rows_NX - rows_NX.mean(axis=1, keepdims=True, dtype=np.float64)
    length_N1 = np.linalg.norm(centred_NX, axis=1, keepdims=True)
    found: Array = centred_NX / np.where(length_N1 > 1e-9, length_N1, 1)
    return found


def legibility(
    reconstruct: Reconstruct,
    image_size: int,
    sizes: Sequence[int],
    measured_by: dict[str, Any],
    measured_of: dict[str, Any],
    *,
    pages: int = 64,
    seed: int = 0,
) -> list[Number]:
    """Share of the characters that are read right, in reconstructions and in the originals, for each size of text.

    Args:
        reconstruct: the tokenizer, there and back.
        image_size: side of its images, in pixels.
        sizes: of the font, in pixels.
        measured_by: more of how it is measured; the protocol is added.
        measured_of: the tokenizer, as numbers.py.
        pages: images of each size.
        seed: of the texts.

    Returns:
        `text_accuracy` and `text_accuracy_of_originals` of each size; ± one standard error over pages.

    Raises:
        UsageError: if a size is too large for the image.
    """
    import PIL

    numbers = []
    for size in sizes:
        accuracy, characters = RowMeans(), 0
        for start in range(0, pages, _BATCH):
            written = [page(image_size, size, seed, number) for number in range(start, min(start + _BATCH, pages))]
            pixels_BHWC = np.stack([each.pixels_HWC for each in written])
            for each, made_HWC in zip(written, reconstruct(pixels_BHWC), strict=True):
                right = [read(image, each.corner_N2, size) == each.symbol_N for image in (made_HWC, each.pixels_HWC)]
                accuracy.update(np.array([[float(found.mean()) for found in right]]))
                characters += len(each.symbol_N)
        protocol = {"size": size, "symbols": len(SYMBOLS), "characters": characters, "seed": seed}
        by = with_protocol(measured_by, protocol | {"pillow": PIL.__version__, "standard_error": "over pages"})
        errors = accuracy.standard_errors
        for place, metric in enumerate(("text_accuracy", "text_accuracy_of_originals")):
            error = None if errors is None else float(errors[place])
            numbers.append(Number(metric, float(accuracy.means[place]), pages, by, dict(measured_of), error))
    return numbers
