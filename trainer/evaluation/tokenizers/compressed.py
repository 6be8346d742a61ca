"""What images keep without a tokenizer: of principal components and of JPEG, at numbers of bits, as rows.

    fits       [B, K]  whether the image fits into each budget of bits: 1 or 0
    bits       [B, K]  that were used of it
    mse        [B, K]  pixels in [-1, 1]
    bitsN.NETWORK.features  [B, D]  what networks say of what is left at a budget of N bits, as bytes

    components    principal components of training images, 8 bits a coefficient (baselines.py)
    jpeg          of each image the file of the highest quality that fits into as many bits

What a JPEG is charged with is its entropy-coded data (all between the header of the scan and the end mark, with stuffed
bytes) and one byte for the quality, from which the rest of a file follows: sizes, quantization tables, the standard's
Huffman tables, as it is written without optimization, at 4:2:0. A tokenizer's weights, the components and their levels
are not charged either. At few bits no quality fits.

Shapes: B images, K budgets, D features, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Pixels
from trainer.evaluation.measures import ImageMeasure, Rows
from trainer.evaluation.networks.network_rows import FEATURES, Slot, open_slots, row_name, rows_of
from trainer.evaluation.tokenizers.baselines import BITS, Components

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.networks.feature_networks import FeatureNetwork

QUALITIES = range(1, 96)
"""Of a JPEG in Pillow's numbers; above 95 files grow without use."""
QUALITY_BITS = 8
_START, _START_OF_SCAN, _END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True)
class Left:
    """What a batch keeps at one budget."""

    fits_B: npt.NDArray[np.uint8]
    """1, or 0 of an image that does not fit."""
    bits_B: npt.NDArray[np.int32]
    mse_B: npt.NDArray[np.float32]
    pixels_BHWC: Pixels
    """As bytes; black where nothing fits."""


class Codec(Protocol):
    """A way to spend bits on images."""

    @property
    def budgets(self) -> Sequence[int]:
        """Bits of an image that may be spent."""

    def identity(self) -> dict[str, Any]:
        """What it is, with its budgets, as JSON."""

    def left(self, pixels_BHWC: Pixels) -> Iterator[Left]:
        """What images keep, uint8, at each budget.

        Raises:
            UsageError: if they are none that it knows.
        """


@dataclass(frozen=True)
class CompressedRows:
    """A `Measure` (measures.py): what images keep of a codec, and what networks say of it."""

    codec: Codec
    slots: tuple[Slot, ...] = ()

    def identity(self) -> dict[str, Any]:
        """The codec, and the networks."""
        return self.codec.identity() | {"networks": {slot.name: slot.identity for slot in self.slots}}

    def open(self, device: torch.device) -> ImageMeasure:
        """Load the networks.

        Raises:
            UsageError: if one is another by now.
        """
        return _Open(self.codec, open_slots(self.slots, device), device)


@dataclass(frozen=True)
class _Open:
    codec: Codec
    networks: Mapping[str, FeatureNetwork]
    device: torch.device

    def __call__(self, pixels_BHWC: Pixels, label_B: npt.NDArray[np.int64], first: int) -> Rows:  # noqa: ARG002
        columns, rows = [], Rows()
        for budget, left in zip(self.codec.budgets, self.codec.left(pixels_BHWC), strict=True):
            columns.append((left.fits_B, left.bits_B, left.mse_B))
            seen = rows_of(self.networks, left.pixels_BHWC, self.device) if self.networks else Rows()
            rows |= {feature_row(slot, budget): seen[row_name(slot, FEATURES)] for slot in self.networks}
        stacked = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
        return dict(zip(("fits", "bits", "mse"), stacked, strict=True)) | rows


def feature_row(slot: str, budget: int) -> str:
    """Name of the features of what is left at a budget."""
    return f"bits{budget}.{row_name(slot, FEATURES)}"


@dataclass(frozen=True)
class ComponentCodec:
    """The first principal components of each image that its bits pay for; of no coefficient the mean image."""

    components: Components
    training: dict[str, Any]
    """The images that they are of, as JSON (`ImageSet.identity`)."""
    uri: str
    """Where these are, for errors."""
    budgets: Sequence[int]

    def identity(self) -> dict[str, Any]:
        """The images, and the bits."""
        return {
            "kind": "components",
            "training": self.training,
            "coefficient_bits": BITS,
            "budgets": list(self.budgets),
        }

    def left(self, pixels_BHWC: Pixels) -> Iterator[Left]:
        """At each budget.

        Raises:
            UsageError: if the components are of grey images, and these are coloured.
        """
        try:
            yield from (self._left(pixels_BHWC, budget) for budget in self.budgets)
        except ValueError as error:
            raise UsageError(f"{self.uri}: {error}") from None

    def _left(self, pixels_BHWC: Pixels, budget: int) -> Left:
        made_BHWC = self.components.rebuilt(pixels_BHWC, budget)
        bits_B = np.full(len(pixels_BHWC), BITS * self.components.coefficients(budget), np.int32)
        pixels = np.clip(np.floor((made_BHWC + 1) * 127.5 + 0.5), 0, 255).astype(np.uint8)
        return Left(np.ones(len(bits_B), np.uint8), bits_B, _errors(made_BHWC, pixels_BHWC), pixels)


@dataclass(frozen=True)
class JpegCodec:
    """JPEG files of the highest quality that fits."""

    budgets: Sequence[int]

    def identity(self) -> dict[str, Any]:
        """The budgets, and the library that writes the files."""
        import PIL

        return {"kind": "jpeg", "budgets": list(self.budgets), "pillow": PIL.__version__}

    def left(self, pixels_BHWC: Pixels) -> Iterator[Left]:
        """At each budget."""
        files = [{quality: jpeg_file(each, quality) for quality in QUALITIES} for each in pixels_BHWC]
        sizes = [{quality: charged_bits(data) for quality, data in each.items()} for each in files]
        for budget in self.budgets:
            fits_B = np.zeros(len(pixels_BHWC), np.uint8)
            bits_B = np.zeros(len(pixels_BHWC), np.int32)
            made_BHWC = np.zeros_like(pixels_BHWC)
            for image, known in enumerate(sizes):
                best = max((quality for quality, bits in known.items() if bits <= budget), default=None)
                if best is not None:
                    fits_B[image], bits_B[image], made_BHWC[image] = 1, known[best], _decoded(files[image][best])
            yield Left(fits_B, bits_B, _errors(made_BHWC / 127.5 - 1, pixels_BHWC), made_BHWC)


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


def _decoded(data: bytes) -> Pixels:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _errors(made_BHWC: npt.NDArray[np.float64], pixels_BHWC: Pixels) -> npt.NDArray[np.float32]:
    """Of pixels in [-1, 1]."""
    error_B = np.square(made_BHWC - (pixels_BHWC / 127.5 - 1)).mean(axis=(1, 2, 3))
    found: npt.NDArray[np.float32] = error_B.astype(np.float32)
    return found
