"""Bits of an image against squared error: a tokenizer at each prefix, and what as many bits are worth without it.

    tokenizer     bits of the tokens of each prefix, at log2 of the vocabulary each, not entropy-coded
    components    principal components of training images, 8 bits a coefficient (baselines.py)
    jpeg          of each image the file of the highest quality that fits into as many bits

What a JPEG is charged with is its entropy-coded data (all between the header of the scan and the end mark, with stuffed
bytes) and one byte for the quality, from which the rest of a file follows: sizes, quantization tables, the standard's
Huffman tables, as it is written without optimization, at 4:2:0. A tokenizer's weights, the components and their levels
are not charged either. At few bits no quality fits: then there is no point.

Shapes: B images, K budgets, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_pipeline.images.transforms import Pixels
from model.layout import TokenLayout
from trainer.evaluation.measures import ImageMeasure, MeasuredRows, Rows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.tokenizers.baselines import bits_of, component_errors
from trainer.metrics.means import RowMeans

if TYPE_CHECKING:
    import torch

QUALITIES = range(1, 96)
"""Of a JPEG in Pillow's numbers; above 95 files grow without use."""
QUALITY_BITS = 8
_START, _START_OF_SCAN, _END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True)
class Point:
    """What a number of bits of an image is worth."""

    budget: int
    """Bits that were allowed."""
    bits: float | None
    """That were used, a mean over images; None where some image does not fit."""
    mse: float | None
    """Mean over images; pixels in [-1, 1]."""


@dataclass(frozen=True)
class Curve:
    """Points of one way to spend bits."""

    name: str
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return asdict(self)


@dataclass(frozen=True)
class RateDistortion:
    """Curves of one set of images, and what the components are of."""

    curves: tuple[Curve, ...]
    training: dict[str, Any]
    """The images that components were computed from, as JSON (`ImageSet.identity`)."""
    component_images: int
    """Images that components were judged on, the first ones; the other curves are of all."""

    def to_json(self) -> dict[str, Any]:
        """For evaluation.json."""
        return asdict(self)


@dataclass(frozen=True)
class JpegMeasure:
    """A `Measure`, and its own `ImageMeasure` (measures.py): JPEG files at each budget of bits.

    Rows: `jpeg_bits` [B, K] int32, 0 where no quality fits; `jpeg_mse` [B, K].
    """

    budgets: Sequence[int]

    def identity(self) -> dict[str, Any]:
        """The budgets, and the library that writes the files."""
        import PIL

        return {"kind": "jpeg", "budgets": list(self.budgets), "pillow": PIL.__version__}

    def open(self, device: torch.device) -> ImageMeasure:  # noqa: ARG002 - a Measure has it
        """There is nothing to load."""
        return self

    def __call__(self, pixels_BHWC: Pixels, label_B: npt.NDArray[np.int64], first: int) -> Rows:  # noqa: ARG002
        """Rows of a batch."""
        bits_BK = np.zeros((len(pixels_BHWC), len(self.budgets)), np.int32)
        mse_BK = np.zeros(bits_BK.shape, np.float32)
        for image, pixels_HWC in enumerate(pixels_BHWC):
            files = {quality: jpeg_file(pixels_HWC, quality) for quality in QUALITIES}
            sizes = {quality: charged_bits(data) for quality, data in files.items()}
            for place, budget in enumerate(self.budgets):
                best = max((quality for quality, bits in sizes.items() if bits <= budget), default=None)
                if best is not None:
                    bits_BK[image, place] = sizes[best]
                    mse_BK[image, place] = _error(_decoded(files[best]), pixels_HWC)
        return {"jpeg_bits": bits_BK, "jpeg_mse": mse_BK}


def jpeg_file(pixels_HWC: Pixels, quality: int) -> bytes:
    """A baseline JPEG at 4:2:0 with the standard's Huffman tables."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=quality, subsampling="4:2:0", optimize=False)
    return buffer.getvalue()


def charged_bits(data: bytes) -> int:
    """Bits of a file that are its image's own: entropy-coded data, and the quality.

    Raises:
        ValueError: if it is no JPEG with one scan.
    """
    place = len(_START)
    while data[place : place + 2] != _START_OF_SCAN:
        if data[:2] != _START or data[place : place + 1] != b"\xff":
            raise ValueError("is no JPEG file")
        place += _segment(data, place)
    scan = data[place + _segment(data, place) :]
    if not scan.endswith(_END) or _START_OF_SCAN in scan:
        raise ValueError("is no whole JPEG file with one scan")
    return 8 * (len(scan) - len(_END)) + QUALITY_BITS


def _segment(data: bytes, place: int) -> int:
    """Bytes of a marker and what belongs to it."""
    return 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def jpeg_curve(rows: MeasuredRows, budgets: Sequence[int]) -> Curve:
    """Means over images at each budget into which all of them fit."""
    bits, errors = RowMeans(), RowMeans()
    fits_K = np.ones(len(budgets), np.bool_)
    for part in rows.parts("jpeg_bits", "jpeg_mse"):
        bits.update(part["jpeg_bits"])
        errors.update(part["jpeg_mse"])
        fits_K &= (part["jpeg_bits"] > 0).all(axis=0)
    means = zip(budgets, bits.means.tolist(), errors.means.tolist(), fits_K, strict=True)
    points = (Point(budget, used, mse) if fits else Point(budget, None, None) for budget, used, mse, fits in means)
    return Curve("JPEG", tuple(points))


def tokenizer_curve(numbers: Iterable[Number], layout: TokenLayout, name: str = "tokenizer") -> Curve:
    """The squared errors among numbers of a tokenizer (tokenizer_numbers.py), by the bits of their prefixes."""
    found = sorted((each.measured_of["keep"], each.value) for each in numbers if each.metric == "mse")
    return Curve(name, tuple(Point(bits_of(layout, keep), bits_of(layout, keep), mse) for keep, mse in found))


def component_curve(training_NHWC: Pixels, held_out_NHWC: Pixels, budgets: Sequence[int]) -> Curve:
    """Of held-out images by principal components of training images; of no coefficient the mean image."""
    found = component_errors(training_NHWC, held_out_NHWC, budgets)
    return Curve("principal components", tuple(Point(each.bits, 8 * each.coefficients, each.mse) for each in found))


def _decoded(data: bytes) -> Pixels:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _error(made_HWC: Pixels, pixels_HWC: Pixels) -> float:
    return float(np.square((made_HWC.astype(np.float64) - pixels_HWC) / 127.5).mean())
