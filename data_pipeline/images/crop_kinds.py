"""The crops of training images, by name. Imports no image library, so that a config is checked fast.

    center               ADM's centre crop (arXiv 2105.05233, as published with its code)
    random               ADM's random crop; ImageFolder (arXiv 2410.01756) and LlamaGen (arXiv 2406.06525) train on it
    resize-random-crop   torchvision's Resize and RandomCrop; TiTok (arXiv 2406.07550): short 1, bicubic;
                         VAR (arXiv 2404.02905): short 1.125, lanczos
    resize-center-crop   torchvision's Resize and CenterCrop
    random-resized-crop  torchvision's RandomResizedCrop

A name alone takes the defaults: `crop: random` is `crop: {kind: random}`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    WrapSerializer,
    model_validator,
)

from model.config import Section

Filter = Literal["bilinear", "bicubic", "lanczos"]
"""A filter of Pillow's resize, which is as wide as the scale asks for (antialiasing)."""

Stretch = Annotated[float, Field(ge=1, le=64)]
"""A side in sides of the crop."""
Share = Annotated[float, Field(gt=0, le=1)]


def _ascending(name: str, pair: tuple[float, float]) -> None:
    if pair[0] > pair[1]:
        raise ValueError(f"{name} goes from the least to the most, and {pair[0]} is more than {pair[1]}")


class CenterCrop(Section):
    """ADM's centre crop: halve with a box filter while that can be, go on with a bicubic one, cut the centre."""

    kind: Literal["center"] = "center"
    """This kind of crop."""


class RandomCrop(Section):
    """ADM's random crop: its resize to a short side that is drawn from a range, and a square anywhere in it."""

    kind: Literal["random"] = "random"
    """This kind of crop."""
    shares: tuple[Annotated[float, Field(ge=0.05, le=1)], Share] = (0.8, 1.0)
    """Least and most of the short side that the crop covers. The short side is a whole number of pixels, each from
    size / most to size / least as likely as any other: of 256 pixels, [0.8, 1] draws from 256 to 320."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ascending("shares", self.shares)
        return self


class ResizeRandomCrop(Section):
    """torchvision's Resize of the short side, and a square anywhere in the result."""

    kind: Literal["resize-random-crop"] = "resize-random-crop"
    """This kind of crop."""
    short: Stretch | tuple[Stretch, Stretch] = 1.0
    """The short side, in sides of the crop, rounded to a pixel: 1.125 is 288 of 256. Or a range of it, from which a
    whole number of pixels is drawn."""
    filter: Filter = "bicubic"
    """Of the resize."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.short, tuple):
            _ascending("short", self.short)
        return self


class ResizeCenterCrop(Section):
    """torchvision's Resize of the short side, and CenterCrop."""

    kind: Literal["resize-center-crop"] = "resize-center-crop"
    """This kind of crop."""
    short: Stretch = 1.0
    """The short side, in sides of the crop, rounded to a pixel."""
    filter: Filter = "bicubic"
    """Of the resize."""


class RandomResizedCrop(Section):
    """torchvision's RandomResizedCrop: a rectangle of a drawn area and aspect ratio, resized to the square."""

    kind: Literal["random-resized-crop"] = "random-resized-crop"
    """This kind of crop."""
    area: tuple[Share, Share] = (0.08, 1.0)
    """Least and most area of the rectangle, as a share of the picture's."""
    ratio: tuple[Annotated[float, Field(gt=0.01, le=100)], Annotated[float, Field(gt=0.01, le=100)]] = (0.75, 4 / 3)
    """Least and most width over height; their logarithm is drawn evenly."""
    filter: Filter = "bilinear"
    """Of the resize."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ascending("area", self.area)
        _ascending("ratio", self.ratio)
        return self


AnyCrop = CenterCrop | RandomCrop | ResizeRandomCrop | ResizeCenterCrop | RandomResizedCrop


def _read(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _write(crop: AnyCrop, write: SerializerFunctionWrapHandler) -> Any:
    """The bare name, where everything else is as it is by default."""
    return crop.kind if crop == type(crop)() else write(crop)


_KINDS: tuple[type[AnyCrop], ...] = (CenterCrop, RandomCrop, ResizeRandomCrop, ResizeCenterCrop, RandomResizedCrop)
_NAMES = [kind.model_fields["kind"].default for kind in _KINDS]
_SCHEMA: dict[str, Any] = {"anyOf": [{"enum": _NAMES}, *(kind.model_json_schema() for kind in _KINDS)]}

CropSetting = Annotated[
    Annotated[AnyCrop, Field(discriminator="kind")],
    BeforeValidator(_read),
    WrapSerializer(_write),
    WithJsonSchema(_SCHEMA),
]
"""A crop, as a config names it."""

CENTER, ADM_RANDOM, VAR_RANDOM = CenterCrop(), RandomCrop(), ResizeRandomCrop(short=1.125, filter="lanczos")
"""ADM's two, and VAR's, on which ImageFolder's generators are trained, too."""
