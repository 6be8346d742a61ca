"""What a number of bits is worth without a network: the mean image, and principal components.

A tokenizer's squared error means something beside that of k coefficients of 8 bits each, where 8 k is the bits of its
tokens. Each coefficient has 256 levels, evenly from the least to the largest value among the training images;
what all images share (mean, components, levels) costs nothing, as a tokenizer's weights do not.

Images of more than 32 pixels are cut into squares, whose components are one set: their bits are shared out evenly.

Shapes: N images, H height, W width, R rows (images, or squares of images), D numbers of a row, K components.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.images.transforms import Pixels
from model.layout import TokenLayout

BITS = 8
"""Of a coefficient."""
LARGEST_SIDE = 32
"""Pixels of a square, at most."""
MOST_ROWS = 50_000
"""Squares that components are computed from, at most: 154 MB of bytes, and a matrix of 75 MB."""
_AT_ONCE = 4096

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Baseline:
    """Squared error of images by a number of bits; pixels in [-1, 1]."""

    bits: int
    """Of each image that were asked for."""
    coefficients: int
    """Of each image."""
    mse: float
    """Mean over the images that nothing was computed from."""


@dataclass(frozen=True)
class Components:
    """Principal components of images, or of the squares that they are cut into."""

    size: int
    """Of an image, in pixels."""
    side: int
    """Of a square."""
    is_grey: bool
    """Whether the channels of all images were equal, so that one stands for them."""
    mean_D: Array
    axes_KD: Array
    """Of length one, those of the largest variance first."""
    least_K: Array
    largest_K: Array
    """Ends of each coefficient's levels."""

    @property
    def squares(self) -> int:
        """Of an image."""
        return (self.size // self.side) ** 2

    def coefficients(self, bits: int) -> int:
        """Of an image, that so many bits of it pay for."""
        return min(coefficients_of(bits, self.squares), len(self.axes_KD)) * self.squares

    def rebuilt(self, pixels_NHWC: Pixels, bits: int, *, exact: bool = False) -> Array:
        """Images, uint8, from as many coefficients as bits pay for: [N, H, W, C] in [-1, 1].

        Args:
            pixels_NHWC: of the size that the components are of.
            bits: of each image.
            exact: leave coefficients as they are, in place of the nearest level of each.

        Raises:
            ValueError: if the components are of grey images, and these are coloured.
        """
        if self.is_grey and not _is_grey(pixels_NHWC):
            raise ValueError(
                "the training images are grey, and the others are not: their components say nothing of these"
            )
        rows_RD = _unit(_squares(pixels_NHWC, self.side, self.is_grey))
        made_RD = self._rebuilt_rows(rows_RD, coefficients_of(bits, self.squares), exact=exact)
        made_NHWC = _images(made_RD, self.size, self.side)
        return np.repeat(made_NHWC, pixels_NHWC.shape[-1], axis=-1) if self.is_grey else made_NHWC

    def _rebuilt_rows(self, rows_RD: Array, count: int, *, exact: bool) -> Array:
        axes_KD, least_K, largest_K = self.axes_KD[:count], self.least_K[:count], self.largest_K[:count]
        values_RK = (rows_RD - self.mean_D) @ axes_KD.T
        if not exact:
            step_K = np.maximum(largest_K - least_K, 1e-12) / (2**BITS - 1)
            values_RK = least_K + step_K * np.clip(np.rint((values_RK - least_K) / step_K), 0, 2**BITS - 1)
        found: Array = np.clip(self.mean_D + values_RK @ axes_KD, -1, 1)
        return found


def bits_of(layout: TokenLayout, keep: int) -> int:
    """Bits of the tokens of the first `keep` positions; a fold of no power of two counts as its logarithm."""
    return round(keep * sum(float(np.log2(codes)) for codes in layout.vocabularies))


def square_side(size: int) -> int:
    """Side of the squares that images of a size are cut into: the whole image up to 32 pixels, else a divisor."""
    return max(side for side in range(1, min(size, LARGEST_SIDE) + 1) if size % side == 0)


def coefficients_of(bits: int, squares: int) -> int:
    """Coefficients of each square that so many bits of an image pay for."""
    return bits // BITS // squares


def images_needed(size: int) -> int:
    """Training images that components are computed from, at most."""
    return max(1, MOST_ROWS // (size // square_side(size)) ** 2)


def components(pixels_NHWC: Pixels, bits: Sequence[int]) -> Components:
    """Of training images, uint8, of which the first that are needed are looked at, for numbers of bits of an image.

    There are at most as many as there are numbers in a square.
    """
    size = pixels_NHWC.shape[1]
    side = square_side(size)
    count = max([1, *(coefficients_of(each, (size // side) ** 2) for each in bits)])
    pixels_NHWC = pixels_NHWC[: images_needed(size)]
    is_grey = _is_grey(pixels_NHWC)
    rows_RD = _squares(pixels_NHWC, side, is_grey)[:MOST_ROWS]
    mean_D = sum(each.sum(axis=0) for each in _parts(rows_RD)) / len(rows_RD)
    scatter_DD = sum((each - mean_D).T @ (each - mean_D) for each in _parts(rows_RD))
    axes_KD = _largest_axes(scatter_DD, min(count, len(mean_D)))
    values = [(each - mean_D) @ axes_KD.T for each in _parts(rows_RD)]
    least_K, largest_K = (np.array([getattr(each, end)(axis=0) for each in values]) for end in ("min", "max"))
    return Components(size, side, is_grey, mean_D, axes_KD, least_K.min(axis=0), largest_K.max(axis=0))


def mean_image_error(training_NHWC: Pixels, held_out_NHWC: Pixels) -> float:
    """Squared error of the training images' mean as the reconstruction of each held-out image."""
    mean_HWC = training_NHWC.mean(axis=0, dtype=np.float64) / 127.5 - 1
    errors = [np.square(_unit(part) - mean_HWC).sum() for part in np.array_split(held_out_NHWC, _pieces(held_out_NHWC))]
    return float(sum(errors) / held_out_NHWC.size)


def component_errors(
    training_NHWC: Pixels, held_out_NHWC: Pixels, bits: Sequence[int], *, exact: bool = False
) -> list[Baseline]:
    """Squared error of held-out images by principal components of the training images, for numbers of bits.

    Args:
        training_NHWC: uint8; of many, the first that are needed.
        held_out_NHWC: uint8.
        bits: of an image.
        exact: leave coefficients as they are, which is what k coefficients could reach at any number of bits.
    """
    found, sums = components(training_NHWC, bits), np.zeros(len(bits))
    for part in np.array_split(held_out_NHWC, _pieces(held_out_NHWC)):
        for place, each in enumerate(bits):
            sums[place] += np.square(found.rebuilt(part, each, exact=exact) - _unit(part)).mean(axis=(1, 2, 3)).sum()
    errors = sums / len(held_out_NHWC)
    return [Baseline(each, found.coefficients(each), float(error)) for each, error in zip(bits, errors, strict=True)]


def _is_grey(pixels_NHWC: Pixels) -> bool:
    return bool((pixels_NHWC == pixels_NHWC[..., :1]).all())


def _squares(pixels_NHWC: Pixels, side: int, is_grey: bool) -> Pixels:
    """Rows [R, D] of squares, uint8."""
    pixels = pixels_NHWC[..., :1] if is_grey else pixels_NHWC
    count, size, _, channels = pixels.shape
    across = size // side
    cut = pixels.reshape(count, across, side, across, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(count * across**2, side * side * channels)


def _images(rows_RD: Array, size: int, side: int) -> Array:
    """The inverse, of numbers."""
    across = size // side
    cut = rows_RD.reshape(-1, across, across, side, side, rows_RD.shape[1] // side**2)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size, size, cut.shape[-1])


def _unit(pixels: Pixels) -> Array:
    return pixels.astype(np.float64) / 127.5 - 1


def _parts(rows_RD: Pixels) -> Iterable[Array]:
    """Rows as numbers, some at a time."""
    return (_unit(rows_RD[first : first + _AT_ONCE]) for first in range(0, len(rows_RD), _AT_ONCE))


def _pieces(pixels_NHWC: Pixels) -> int:
    """Parts of some 16 million numbers."""
    return max(1, -(-pixels_NHWC.size // 2**24))


def _largest_axes(scatter_DD: Array, count: int) -> Array:
    """Eigenvectors of the largest eigenvalues [K, D]; the largest entry of each is positive: so they are unique."""
    from scipy.linalg import eigh

    width = len(scatter_DD)
    _, vectors_DK = eigh(scatter_DD, subset_by_index=(width - count, width - 1))
    axes_KD = vectors_DK.T[::-1]
    largest_K = axes_KD[np.arange(count), np.abs(axes_KD).argmax(axis=1)]
    found: Array = axes_KD * np.sign(largest_K)[:, None]
    return found
