"""Images as people see them: bytes, grids with labels, PNG.

Shapes: B images, H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont
    from torch import Tensor

    from trainer.config.evaluation import Rounding

Pixels = npt.NDArray[np.uint8]

_BACKGROUND = (255, 255, 255)
_INK = (60, 64, 72)


def to_uint8(images_BCHW: npt.NDArray[np.floating] | Tensor) -> Pixels:
    """Images of [-1, 1] as bytes, uint8 [B, H, W, C]: floor(255 x + 0.5) of x in [0, 1], clipped.

    This rounds to the nearest byte, halves up, so that a byte b read as b / 127.5 - 1 comes back as b.

    Raises:
        ValueError: as `to_bytes`.
    """
    return to_bytes(images_BCHW, "nearest")


def to_bytes(images_BCHW: npt.NDArray[np.floating] | Tensor, rounding: Rounding) -> Pixels:
    """Images of [-1, 1] as bytes, uint8 [B, H, W, C], by one of the ways of published code (config/evaluation.py).

    Raises:
        ValueError: if the shape is not [B, 1 or 3, H, W], or a value is not a number.
    """
    if not isinstance(images_BCHW, np.ndarray):
        images_BCHW = images_BCHW.detach().float().cpu().numpy()
    if images_BCHW.ndim != 4 or images_BCHW.shape[1] not in {1, 3}:
        raise ValueError(f"images of shape {list(images_BCHW.shape)}: give [images, 1 or 3 channels, height, width]")
    if np.isnan(images_BCHW).any():
        raise ValueError("images hold values that are not a number; the network that made them has diverged")
    pixels_BCHW = np.clip(_ROUNDINGS[rounding](images_BCHW), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels_BCHW.transpose(0, 2, 3, 1))


def _unit(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """From [-1, 1] to [0, 1], clipped."""
    return np.clip((values.astype(np.float64) + 1) / 2, 0, 1)


_ROUNDINGS: dict[Rounding, Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]]] = {
    "nearest": lambda values: np.floor(255 * _unit(values) + 0.5),
    "floor": lambda values: np.floor(255 * _unit(values)),
    "adm": lambda values: np.trunc((values.astype(np.float32) + np.float32(1)) * np.float32(127.5)),
}


def image_grid(
    pixels_BHWC: Pixels,
    columns: int,
    *,
    upscale: int = 1,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    padding: int = 2,
) -> Image:
    """Images row by row on a white sheet, the last row filled as far as they go.

    Args:
        pixels_BHWC: uint8, all of one size.
        columns: images in a row.
        upscale: each pixel becomes a square of this side (nearest), so that small images can be judged.
        row_labels: written left of the rows, one for each, or none.
        column_labels: written above the columns, one for each, or none.
        padding: white pixels between images.

    Raises:
        ValueError: if there is no image, or there are as many labels neither as rows (columns) nor none.
    """
    from PIL import Image

    count, height, width, _ = pixels_BHWC.shape
    if not count or columns < 1 or upscale < 1:
        raise ValueError(f"{count} images in {columns} columns, {upscale} times as large: each must be at least 1")
    rows = math.ceil(count / columns)
    for labels, needed, what in ((row_labels, rows, "rows"), (column_labels, columns, "columns")):
        if labels and len(labels) != needed:
            raise ValueError(f"{len(labels)} labels for {needed} {what}")
    cell_height, cell_width = height * upscale + padding, width * upscale + padding
    font = _font(min(max(cell_height // 5, 11), 18))
    left = padding + (max((math.ceil(font.getlength(label)) for label in row_labels), default=-10) + 10)
    top = padding + (_line_height(font) + 6 if column_labels else 0)
    sheet = Image.new("RGB", (left + columns * cell_width, top + rows * cell_height), _BACKGROUND)
    for i, pixels in enumerate(pixels_BHWC):
        row, column = divmod(i, columns)
        sheet.paste(_enlarged(pixels, upscale), (left + column * cell_width, top + row * cell_height))
    _write_labels(sheet, font, (left, top), (cell_width, cell_height), row_labels, column_labels)
    return sheet


def to_png(image: Image) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _line_height(font: FreeTypeFont | ImageFont) -> int:
    return math.ceil(font.getbbox("Ag")[3])


def _enlarged(pixels_HWC: Pixels, upscale: int) -> Image:
    from PIL import Image

    rgb = np.broadcast_to(pixels_HWC, (*pixels_HWC.shape[:2], 3))
    return Image.fromarray(np.ascontiguousarray(rgb.repeat(upscale, axis=0).repeat(upscale, axis=1)))


def _write_labels(
    sheet: Image,
    font: FreeTypeFont | ImageFont,
    origin: tuple[int, int],
    cell: tuple[int, int],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(sheet)
    (left, top), (cell_width, cell_height) = origin, cell
    for row, label in enumerate(row_labels):
        y = top + row * cell_height + (cell_height - _line_height(font)) // 2
        draw.text((left - 6 - font.getlength(label), y), label, fill=_INK, font=font)
    for column, label in enumerate(column_labels):
        x = left + column * cell_width + (cell_width - font.getlength(label)) / 2
        draw.text((x, top - _line_height(font) - 4), label, fill=_INK, font=font)
