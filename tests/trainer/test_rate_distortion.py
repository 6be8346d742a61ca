"""Bits against squared error and distances: what a JPEG is charged with, which quality fits, and the curves."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from data_pipeline.errors import UsageError
from data_pipeline.shards.weights import write_weights
from model.classifier import Classifier
from model.config import ClassifierConfig
from model.layout import TokenLayout
from trainer.config.feature_networks import ClassifierNetwork
from trainer.evaluation.measures import Rows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.networks.feature_networks import open_network
from trainer.evaluation.networks.network_rows import Slot
from trainer.evaluation.set_numbers import Reference
from trainer.evaluation.tokenizers.baselines import components
from trainer.evaluation.tokenizers.compressed import (
    QUALITIES,
    Codec,
    ComponentCodec,
    CompressedRows,
    JpegCodec,
    charged_bits,
    feature_row,
    jpeg_file,
)
from trainer.evaluation.tokenizers.rate_distortion import Curve, Point, codec_curve, tokenizer_curve
from trainer.metrics.frechet import FeatureSums

CPU = torch.device("cpu")


def images(count: int, size: int = 32) -> npt.NDArray[np.uint8]:
    """Gradients with noise."""
    y, x = np.mgrid[:size, :size] * (200 / size)
    noise = np.random.default_rng(0).normal(0, 12, (count, size, size, 3))
    return np.clip(np.stack([x, y, (x + y) / 2], 2) + noise, 0, 255).astype(np.uint8)


def error(data: bytes, original: npt.NDArray[np.uint8]) -> float:
    seen = np.asarray(Image.open(io.BytesIO(data)), dtype=np.float64)
    return float((((seen / 127.5 - 1) - (original / 127.5 - 1)) ** 2).mean())


def test_a_file_is_charged_with_its_scan_and_a_byte_for_the_quality() -> None:
    """Counted from the other end: files of one size and quality share all before the scan's data, and the end mark."""
    one, other = (jpeg_file(each, 50) for each in images(2))
    start = one.index(b"\xff\xda")
    header = start + 2 + int.from_bytes(one[start + 2 : start + 4], "big")
    assert one[:header] == other[:header]
    assert charged_bits(one) == 8 * (len(one) - header - 2) + 8
    assert header > 600


@pytest.mark.parametrize("quality", [1, 50, 95])
def test_headers_follow_from_the_quality_alone(quality: int) -> None:
    header = len(jpeg_file(images(1)[0], quality)) - (charged_bits(jpeg_file(images(1)[0], quality)) - 8) // 8
    assert header == len(jpeg_file(images(1)[0], 75)) - (charged_bits(jpeg_file(images(1)[0], 75)) - 8) // 8


@pytest.mark.parametrize("data", [b"", b"hello", jpeg_file(images(1)[0], 5)[:-2]], ids=["empty", "text", "cut"])
def test_what_is_no_whole_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="JPEG"):
        charged_bits(data)


def rows_of(codec: Codec, pixels: npt.NDArray[np.uint8], *slots: Slot) -> Rows:
    return CompressedRows(codec, slots).open(CPU)(pixels, np.zeros(len(pixels), np.int64), 0)


def test_the_highest_quality_that_fits_is_taken() -> None:
    pixels = images(2)
    found = rows_of(JpegCodec((1000, 3000)), pixels)
    assert found["fits"].tolist() == [[1, 1], [1, 1]]
    for image, original in enumerate(pixels):
        sizes = {quality: charged_bits(jpeg_file(original, quality)) for quality in QUALITIES}
        for place, budget in enumerate((1000, 3000)):
            best = max(quality for quality in QUALITIES if sizes[quality] <= budget)
            assert found["bits"][image, place] == sizes[best] <= budget
            expected = error(jpeg_file(original, best), original)
            assert found["mse"][image, place] == pytest.approx(expected, rel=1e-5)
    assert (found["mse"][:, 0] > found["mse"][:, 1]).all()


def test_the_measure_of_a_set_names_codec_budgets_and_networks(classifier: Slot) -> None:
    found = CompressedRows(JpegCodec((1000, 3000)), (classifier,)).identity()
    assert (found["kind"], found["budgets"]) == ("jpeg", [1000, 3000])
    assert found["networks"] == {"network0": classifier.identity}
    fitted = components(images(12, size=8), (8, 16))
    named = [ComponentCodec(fitted, {"images": name}, "", (8, 16)).identity() for name in ("a", "b")]
    assert named[0] != named[1]
    assert named[0]["kind"] == "components"


def test_workers_are_sent_the_components_that_were_computed() -> None:
    pixels = images(3, size=8)
    sent = CompressedRows(ComponentCodec(components(images(12, size=8), (24,)), {"images": "a"}, "", (24,)))
    found = pickle.loads(pickle.dumps(sent))
    assert found.identity() == sent.identity()
    np.testing.assert_array_equal(rows_of(found.codec, pixels)["mse"], rows_of(sent.codec, pixels)["mse"])


def test_a_budget_that_nothing_fits_into_has_no_bits() -> None:
    found = rows_of(JpegCodec((16, 3000)), images(1))
    assert found["fits"].tolist() == [[0, 1]]
    assert found["bits"][0, 0] == 0
    assert found["bits"][0, 1] > 0


@pytest.fixture
def classifier(tmp_path: Path) -> Slot:
    """A small network of random weights."""
    config, uri = ClassifierConfig(image_size=32, num_classes=3, widths=(8, 8)), str(tmp_path / "judge")
    torch.manual_seed(0)
    write_weights(uri, "judge", config.model_dump(mode="json"), {"model": Classifier(config).state_dict()}, {})
    network = ClassifierNetwork(kind="classifier", uri=uri)
    return Slot("network0", network, open_network(network, CPU).identity())


@pytest.mark.parametrize("kind", ["jpeg", pytest.param("components", marks=pytest.mark.slow)])
def test_networks_see_the_bytes_of_what_is_left(kind: str, classifier: Slot) -> None:
    """Against the network on what Pillow and the singular value decomposition leave."""
    pixels, training = images(3), images(9)[3:]
    if kind == "jpeg":
        budget = 100_000  # all fit at the highest quality
        codec: Codec = JpegCodec((budget,))
        left = np.stack([np.asarray(Image.open(io.BytesIO(jpeg_file(each, QUALITIES[-1])))) for each in pixels])
    else:
        budget = 24
        codec = ComponentCodec(components(training, (budget,)), {}, "grey.npz", (budget,))
        unit = training.reshape(6, -1) / 127.5 - 1
        mean, shown = unit.mean(0), pixels.reshape(3, -1) / 127.5 - 1
        axes = np.linalg.svd(unit - mean, full_matrices=False)[2][:3]
        own, values = (unit - mean) @ axes.T, (shown - mean) @ axes.T
        least, step = own.min(0), (own.max(0) - own.min(0)) / 255
        made = np.clip(mean + (least + step * np.rint((values - least) / step).clip(0, 255)) @ axes, -1, 1)
        left = np.floor((made + 1) * 127.5 + 0.5).astype(np.uint8).reshape(pixels.shape)
    found = rows_of(codec, pixels, classifier)[feature_row("network0", budget)]
    network = open_network(classifier.config, CPU)
    expected = network(torch.from_numpy(left).permute(0, 3, 1, 2))["features"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Halves:
    """Rows in two parts."""

    def __init__(self, **rows: npt.NDArray[Any]) -> None:
        self._rows, self.count = rows, len(next(iter(rows.values())))

    def parts(self, *names: str) -> Iterator[Rows]:
        for part in (slice(0, 1), slice(1, None)):
            yield {name: self._rows[name][part] for name in names}

    def column(self, name: str) -> npt.NDArray[Any]:
        return self._rows[name]


def test_a_budget_has_a_point_where_all_images_fit() -> None:
    rows = Halves(
        fits=np.array([[0, 1], [1, 1]], np.uint8),
        bits=np.array([[0, 90], [40, 110]], np.int32),
        mse=np.array([[0.0, 0.25], [0.5, 0.75]], np.float32),
    )
    assert codec_curve("JPEG", rows, (50, 120)) == Curve("JPEG", (Point(50, None, None), Point(120, 100.0, 0.5)))


def test_distances_are_of_what_is_left_at_each_budget(classifier: Slot) -> None:
    """On paper: one feature, so that the distance is (difference of means)^2 + (difference of deviations)^2."""
    ones = np.ones((2, 1), np.uint8)
    rows = Halves(
        fits=ones,
        bits=np.full((2, 1), 8, np.int32),
        mse=np.zeros((2, 1), np.float32),
        **{"bits8.network0.features": np.array([[1.0], [3.0]], np.float32)},
    )
    sums = FeatureSums()
    sums.update(np.array([[4.0], [8.0]]))
    reference = Reference({}, None, {}, {"network0.features": sums.statistics()})
    (point,) = codec_curve("JPEG", rows, (8,), (classifier,), reference).points
    assert point.distances["network0"] == pytest.approx((6 - 2) ** 2 + (8**0.5 - 2**0.5) ** 2)


def test_a_tokenizers_points_are_its_prefixes(classifier: Slot) -> None:
    by = {"network": classifier.identity}
    numbers = [
        *(Number("mse", 0.5, 9, {}, {"keep": 5}), Number("mse", 0.75, 9, {}, {"keep": 1}), Number("psnr", 9.0, 9)),
        *(Number("frechet_distance", 2.0, 9, by), Number("frechet_distance", 3.0, 9, by, {"keep": 1})),
        Number("frechet_distance", 7.0, 9, {"network": {"name": "another"}}),
    ]
    found = tokenizer_curve(numbers, TokenLayout((1, 4), (256, 16)), (classifier,))
    assert found.points == (Point(12, 12, 0.75, {"network0": 3.0}), Point(60, 60, 0.5, {"network0": 2.0}))
    assert tokenizer_curve(numbers, TokenLayout((1, 4), (256, 16))).points[0] == Point(12, 12, 0.75)


def test_components_are_charged_with_eight_bits_each() -> None:
    training = images(12, size=8)
    found = rows_of(ComponentCodec(components(training, (7, 20)), {}, "grey.npz", (7, 20)), training)
    unit = training.reshape(12, -1) / 127.5 - 1
    assert found["fits"].all()
    assert found["bits"].tolist() == [[0, 16]] * 12
    assert found["mse"][:, 0].mean() == pytest.approx(((unit - unit.mean(0)) ** 2).mean(), rel=1e-5)
    assert found["mse"][:, 1].mean() < found["mse"][:, 0].mean()


def test_components_of_grey_images_say_nothing_of_coloured_ones() -> None:
    grey = np.repeat(images(12, size=8)[..., :1], 3, axis=3)
    codec = ComponentCodec(components(grey, (16,)), {}, "grey.npz", (16,))
    assert rows_of(codec, grey)["mse"].shape == (12, 1)
    with pytest.raises(UsageError, match=r"grey\.npz: the training images are grey"):
        rows_of(codec, images(2, size=8))
