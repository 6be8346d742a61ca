"""How each crop of `crop_kinds` cuts a square from a picture: arithmetic on sizes and uniform numbers, then a resize.

A crop says by name which uniform numbers of [0, 1) it takes; whoever cuts with it draws them. Nothing else is random.
Shape suffixes: H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from data_pipeline.images.crop_kinds import (
    AnyCrop,
    CenterCrop,
    Filter,
    RandomCrop,
    RandomResizedCrop,
    ResizeCenterCrop,
    ResizeRandomCrop,
)
from data_pipeline.images.decoding import Pixels
from data_pipeline.images.pictures import Picture, Square, cut_resized, resized_size

Draws = Sequence[float]
"""Uniform numbers of [0, 1), in the order of a crop's `draws`."""

WHOLE = 2**30
"""A short side of which no picture is twice as long: nothing is halved while it is decoded."""

_FILTERS: dict[Filter, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ATTEMPTS = 10
"""Rectangles that torchvision's RandomResizedCrop draws before it takes the centre."""


class Cutter(Protocol):
    """One crop, ready to cut."""

    @property
    def draws(self) -> tuple[str, ...]:
        """Names of the uniform numbers that it takes."""

    def short(self, size: int, draws: Draws) -> int:
        """Least short side that a picture may have been halved to before; `WHOLE` if it has to be whole."""

    def cut(self, picture: Picture, size: int, draws: Draws) -> Pixels:
        """The square, uint8 [size, size, 3].

        Raises:
            ValueError: if a draw is outside [0, 1).
        """


@singledispatch
def cutter(crop: AnyCrop) -> Cutter:
    """How a crop is cut."""
    raise TypeError(f"{type(crop).__name__} is no crop")


def below(count: int, draw: float) -> int:
    """One of `count` numbers from 0 on, each equally likely if `draw` is uniform.

    Raises:
        ValueError: if `draw` is outside [0, 1).
    """
    if not 0 <= draw < 1:
        raise ValueError(f"{draw} is no uniform number of [0, 1)")
    return int(draw * count)


def center_square(width: int, height: int, size: int) -> Square:
    """ADM's centre crop of a picture: the short side is resized to `size`, and the centre is cut."""
    width, height = resized_size(width, height, size)
    return Square(size, (width - size) // 2, (height - size) // 2, size)


@dataclass(frozen=True)
class _Center:
    draws: tuple[str, ...] = ()

    def short(self, size: int, _draws: Draws) -> int:
        return size

    def cut(self, picture: Picture, size: int, _draws: Draws) -> Pixels:
        return picture.cut(center_square(*picture.size, size))


@cutter.register
def _(_crop: CenterCrop) -> Cutter:
    return _Center()


@dataclass(frozen=True)
class _Random:
    crop: RandomCrop
    draws: tuple[str, ...] = ("side", "y", "x")

    def short(self, size: int, draws: Draws) -> int:
        least, most = (math.ceil(size / share) for share in reversed(self.crop.shares))
        return least + below(most - least + 1, draws[0])

    def cut(self, picture: Picture, size: int, draws: Draws) -> Pixels:
        short = self.short(size, draws)
        width, height = resized_size(*picture.size, short)
        top, left = below(height - size + 1, draws[1]), below(width - size + 1, draws[2])
        return picture.cut(Square(short, left, top, size))


@cutter.register
def _(crop: RandomCrop) -> Cutter:
    return _Random(crop)


def torchvision_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height after torchvision's Resize of the short side, whose long side is rounded down."""
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


@dataclass(frozen=True)
class _ResizeRandom:
    crop: ResizeRandomCrop

    @property
    def draws(self) -> tuple[str, ...]:
        return ("side", "y", "x") if isinstance(self.crop.short, tuple) else ("y", "x")

    def short(self, _size: int, _draws: Draws) -> int:
        return WHOLE

    def cut(self, picture: Picture, size: int, draws: Draws) -> Pixels:
        *side, y, x = draws
        stretch = self.crop.short
        least, most = (round(size * each) for each in (stretch if isinstance(stretch, tuple) else (stretch, stretch)))
        short = least + (below(most - least + 1, side[0]) if side else 0)
        resized = torchvision_size(*picture.size, short)
        top, left = below(resized[1] - size + 1, y), below(resized[0] - size + 1, x)
        return cut_resized(picture.whole(), resized, (left, top), size, _FILTERS[self.crop.filter])


@cutter.register
def _(crop: ResizeRandomCrop) -> Cutter:
    return _ResizeRandom(crop)


@dataclass(frozen=True)
class _ResizeCenter:
    crop: ResizeCenterCrop
    draws: tuple[str, ...] = ()

    def short(self, _size: int, _draws: Draws) -> int:
        return WHOLE

    def cut(self, picture: Picture, size: int, _draws: Draws) -> Pixels:
        resized = torchvision_size(*picture.size, round(size * self.crop.short))
        left, top = (round((side - size) / 2) for side in resized)
        return cut_resized(picture.whole(), resized, (left, top), size, _FILTERS[self.crop.filter])


@cutter.register
def _(crop: ResizeCenterCrop) -> Cutter:
    return _ResizeCenter(crop)


class Rectangle(NamedTuple):
    """A part of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def random_rectangle(width: int, height: int, crop: RandomResizedCrop, draws: Draws) -> Rectangle:
    """What torchvision's RandomResizedCrop cuts, from draws of area and ratio for each attempt, then of row and column.

    Raises:
        ValueError: if a draw is outside [0, 1).
    """
    *shapes, y, x = draws
    least, most = (math.log(ratio) for ratio in crop.ratio)
    for area_draw, ratio_draw in zip(shapes[::2], shapes[1::2], strict=True):
        area = width * height * (crop.area[0] + (crop.area[1] - crop.area[0]) * area_draw)
        ratio = math.exp(least + (most - least) * ratio_draw)
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top, left = below(height - down + 1, y), below(width - across + 1, x)
            return Rectangle(left, top, across, down)
    return _central_rectangle(width, height, crop.ratio)


def _central_rectangle(width: int, height: int, ratio: tuple[float, float]) -> Rectangle:
    """The largest one at the centre whose ratio is possible: what is left where no attempt fits into the picture."""
    across, down = width, height
    if width / height < ratio[0]:
        down = round(width / ratio[0])
    elif width / height > ratio[1]:
        across = round(height * ratio[1])
    return Rectangle((width - across) // 2, (height - down) // 2, across, down)


@dataclass(frozen=True)
class _RandomResized:
    crop: RandomResizedCrop
    draws: tuple[str, ...] = (
        *(f"{what}_{number}" for number in range(_ATTEMPTS) for what in ("area", "ratio")),
        *("y", "x"),
    )

    def short(self, _size: int, _draws: Draws) -> int:
        return WHOLE

    def cut(self, picture: Picture, size: int, draws: Draws) -> Pixels:
        left, top, width, height = random_rectangle(*picture.size, self.crop, draws)
        part = picture.whole().crop((left, top, left + width, top + height))
        return np.asarray(part.resize((size, size), _FILTERS[self.crop.filter]))


@cutter.register
def _(crop: RandomResizedCrop) -> Cutter:
    return _RandomResized(crop)
