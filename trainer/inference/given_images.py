"""Images as users have them to what networks take, and back.

Bytes are 0 to 255 and may have any size: they are cut or padded to the network's as the training images were. Floats
are -1 (black) to 1 (white), and have the network's size already.

Shapes: B images, H height, W width, S side of the network's square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.images.decoding import to_rgb
from data_pipeline.images.transforms import center_crop, pad, to_model
from trainer.evaluation.images import to_uint8

Pixels = npt.NDArray[np.uint8]
Output = Literal["numpy", "pil", "torch"]
"""uint8 [B, S, S, 3] of numpy; a list of B pictures of PIL; or float32 [B, 3, S, S] of torch, -1 to 1."""
Given = Any
"""A picture of PIL, an array of numpy or a tensor of torch, of one image or of several; or a list of those."""
Fit = Literal["crop", "pad"]

_FITS = {"crop": center_crop, "pad": pad}
_ROUNDING = 1e-3
_SHAPES = "give uint8 [H, W, 3] or [B, H, W, 3] of numpy, or uint8 or float [3, H, W] or [B, 3, H, W] of torch"


def check_fit(fit: str) -> None:
    """Refuse a fit that there is not.

    Raises:
        ValueError: if it is none.
    """
    if fit not in _FITS:
        raise ValueError(f"fit {fit!r}: give crop or pad, as data.fit of the run has it")


def check_output(output: str) -> None:
    """Refuse a form of images that there is not, before anything is computed.

    Raises:
        ValueError: if it is none.
    """
    if output not in {"numpy", "pil", "torch"}:
        raise ValueError(f"output {output!r}: give numpy, pil or torch")


def read_images(images: Given, size: int, fit: Fit) -> Tensor:
    """What a network takes, float32 [B, 3, size, size] in [-1, 1], on the CPU.

    Args:
        images: PIL, numpy or torch, of one image or of several; or a list of those.
        size: side of the square, in pixels.
        fit: how bytes of another size become squares, as `data.fit` of a config.

    Raises:
        TypeError: if they are no images.
        ValueError: if shape, size or values are not those of images; it says what they are.
    """
    several: Sequence[Given] = images if isinstance(images, list | tuple) else [images]
    if not several:
        raise ValueError("there are no images in an empty list")
    return torch.cat([_read(given, size, fit) for given in several])


def _read(given: Given, size: int, fit: Fit) -> Tensor:
    if isinstance(given, Image.Image):
        return _fitted([given], size, fit)
    if isinstance(given, np.ndarray):
        if given.dtype == np.uint8:
            return _fitted(_pictures(_batch(given, channels=-1)), size, fit)
        return _floats(torch.from_numpy(given), size)
    if isinstance(given, Tensor):
        if given.dtype == torch.uint8:
            return _fitted(_pictures(_batch(given.cpu().numpy(), channels=-3).transpose(0, 2, 3, 1)), size, fit)
        return _floats(given, size)
    raise TypeError(f"{type(given).__name__} is no image: give PIL, numpy or torch (open a file with PIL.Image.open)")


def _batch(array: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    if array.ndim not in {3, 4} or array.shape[channels] != 3:
        raise ValueError(f"{array.dtype} of shape {list(array.shape)} is no image: {_SHAPES}")
    return array if array.ndim == 4 else array[None]


def _pictures(pixels_BHWC: Pixels) -> list[Image.Image]:
    return [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in pixels_BHWC]


def _fitted(pictures: Sequence[Image.Image], size: int, fit: Fit) -> Tensor:
    squares = [np.asarray(_FITS[fit](to_rgb(picture), size)) for picture in pictures]
    return torch.from_numpy(to_model(squares))


def _floats(image: Tensor, size: int) -> Tensor:
    if not image.is_floating_point():
        raise ValueError(f"images of {image.dtype}: give uint8 of 0 to 255, or floats of -1 to 1")
    if image.ndim not in {3, 4} or image.shape[-3:] != (3, size, size):
        wanted = f"[3, {size}, {size}] or [B, 3, {size}, {size}]"
        raise ValueError(f"floats of shape {list(image.shape)}: this network takes {wanted}; uint8 may have any size")
    image = image.detach().float().cpu()
    least, most = float(image.min()), float(image.max())
    if not (least >= -1 - _ROUNDING and most <= 1 + _ROUNDING):  # also where one is not a number
        raise ValueError(f"floats from {least:.4g} to {most:.4g}: -1 is black and 1 is white; give uint8 for 0 to 255")
    return image if image.ndim == 4 else image[None]


def write_images(image_BCHW: Tensor, output: Output) -> Any:
    """Images as `output` says, of float32 [B, 3, S, S] in [-1, 1].

    Raises:
        ValueError: if there is no such form.
    """
    check_output(output)
    if output == "torch":
        return image_BCHW.cpu()
    pixels = to_uint8(image_BCHW)
    return pixels if output == "numpy" else [Image.fromarray(each) for each in pixels]
