"""What is measured of a tokenizer, and its numbers: against arithmetic of the network's own parts, cut in any way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import to_model
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.config.titok import GaussianConfig
from model.layout import TokenLayout
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.model.small_titok import tokenizer_of
from trainer.config.evaluation import Rounding
from trainer.evaluation.images import to_bytes
from trainer.evaluation.measures import Rows
from trainer.evaluation.tokenizers.tokenizer_measure import (
    TokenizerMeasure,
    perceptual_networks,
    reconstructing,
    spread,
)
from trainer.evaluation.tokenizers.tokenizer_numbers import Columns, tokenizer_numbers
from trainer.metrics.means import RowMeans

CPU, SIZE = torch.device("cpu"), 16
VIT = ViTConfig(width=8, depth=1, heads=2, layer_scale=None)
CONFIG = ImageFolderConfig(
    image_size=SIZE,
    patch_size=4,
    scales=(1, 2, 4),
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=300, code_dim=4),
    encoder=VIT,
    decoder=VIT,
)


def folded() -> ImageFolderTokenizer:
    torch.manual_seed(0)
    tokenizer = ImageFolderTokenizer(CONFIG).eval()
    with torch.no_grad():
        for name in tokenizer.codebooks:
            tokenizer.get_parameter(name).mul_(30)  # so that each scale tells
    return tokenizer


def pixels(count: int, size: int = SIZE) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def network(pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """Sums of bytes, by which half a byte shows."""
    assert pixels_BCHW.dtype == torch.uint8
    return {"features": pixels_BCHW.double().sum((2, 3)), "logits": pixels_BCHW[:, 0, 0].double()}


def brightness(image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    return (image_BCHW - other_BCHW).mean((1, 2, 3)).abs()


TOKENIZER, PIXELS = folded(), pixels(21)
NO_LABELS = np.full(len(PIXELS), -1)


def measured(start: int = 0, stop: int = len(PIXELS), **options: Any) -> Rows:
    return TokenizerMeasure(TOKENIZER, CPU, **options)(PIXELS[start:stop], NO_LABELS[start:stop], start)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return measured(networks={"it": network}, perceptual={"brightness": brightness})  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def parts() -> tuple[Tensor, Tensor, list[Tensor]]:
    """Originals, tokens, and what each scale's end gives."""
    image = torch.from_numpy(to_model(PIXELS))
    with torch.inference_mode():
        tokens = TOKENIZER.tokenize(image)
        return image, tokens, [TOKENIZER.detokenize(tokens, keep) for keep in (1, 5, 21)]


def test_errors_are_those_of_each_prefix(rows: Rows, parts: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    image, _, made = parts
    expected = np.stack([((each - image) ** 2).mean((1, 2, 3)).numpy() for each in made], 1)
    np.testing.assert_allclose(rows["mse"], expected, rtol=1e-5)
    np.testing.assert_allclose(rows["psnr"], 10 * np.log10(4 / expected), rtol=1e-5)
    assert rows["ssim"].shape == (21, 3)
    assert rows["mse"].dtype == np.float32


def test_features_and_distances_are_of_the_full_reconstruction(
    rows: Rows, parts: tuple[Tensor, Tensor, list[Tensor]]
) -> None:
    image, _, made = parts
    bytes_BHWC = to_bytes(made[-1], "nearest")
    np.testing.assert_array_equal(rows["it.features"], bytes_BHWC.sum((1, 2), dtype=np.int64))
    np.testing.assert_array_equal(rows["it.logits"], bytes_BHWC[:, 0, :, 0])
    np.testing.assert_allclose(rows["brightness"], brightness(made[-1], image), rtol=1e-5)


@pytest.mark.parametrize("rounding", ["floor", "adm"])
def test_networks_see_bytes_of_the_rounding_that_is_asked_for(
    rounding: Rounding, parts: tuple[Tensor, Tensor, list[Tensor]]
) -> None:
    found = measured(rounding=rounding, networks={"it": network})["it.features"]
    np.testing.assert_array_equal(found, to_bytes(parts[2][-1], rounding).sum((1, 2), dtype=np.int64))


def test_tokens_are_kept_in_the_smallest_numbers(rows: Rows, parts: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    np.testing.assert_array_equal(rows["tokens"], parts[1].numpy())
    assert rows["tokens"].dtype == np.uint16
    small = TokenizerMeasure(tokenizer_of().eval(), CPU)(pixels(2), NO_LABELS[:2], 0)
    assert small["tokens"].dtype == np.uint8
    assert small["tokens"].shape == (2, 5, 1)


def test_branches_are_means_over_the_grid_of_what_training_compares(rows: Rows) -> None:
    with torch.inference_mode():
        output = TOKENIZER(torch.from_numpy(to_model(PIXELS)), {}, decode=False)
    for branch in range(2):
        np.testing.assert_allclose(rows[f"branch_{branch}"], output.branch_BPC[:, branch], atol=1e-5)
    assert "branch_2" not in rows


def test_the_one_branch_of_latents_in_a_row_is_the_mean_of_their_codes() -> None:
    tokenizer = tokenizer_of().eval()
    found = TokenizerMeasure(tokenizer, CPU)(pixels(3), NO_LABELS[:3], 0)
    codes = tokenizer.get_parameter("quantizer.quantizer.codebook").detach().numpy()
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    np.testing.assert_allclose(found["branch_0"], unit[found["tokens"][..., 0]].mean(1), rtol=1e-5, atol=1e-7)


def test_a_gaussian_bottleneck_has_errors_and_no_tokens() -> None:
    tokenizer = tokenizer_of(quantizer=GaussianConfig(code_dim=4)).eval()
    found = TokenizerMeasure(tokenizer, CPU)(pixels(3), NO_LABELS[:3], 0)
    assert sorted(found) == ["mse", "psnr", "ssim"]
    assert found["mse"].shape == (3, 1)


@pytest.mark.parametrize("quantizer", [None, GaussianConfig(code_dim=4)])
def test_there_and_back_is_what_errors_are_of(quantizer: GaussianConfig | None) -> None:
    tokenizer = tokenizer_of(**({"quantizer": quantizer} if quantizer else {})).eval()
    images = pixels(3)
    made = reconstructing(tokenizer, CPU)(images)
    assert made.shape == images.shape
    found = TokenizerMeasure(tokenizer, CPU)(images, NO_LABELS[:3], 0)["mse"][:, -1]
    np.testing.assert_allclose(found, ((made - (images / 127.5 - 1)) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_a_tokenizer_without_pixels_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to paint them"):
        TokenizerMeasure(tokenizer_of(target="codes"), CPU)


def test_of_many_prefixes_twelve_are_measured_and_all_is_one_of_them() -> None:
    found = spread(range(1, 257))
    assert len(found) == 12
    assert found[-1] == 256
    assert spread((1, 5, 21)) == (1, 5, 21)


def test_perceptual_networks_of_a_loss_are_named_by_kind_and_the_teachers_is_left_out() -> None:
    from model.config.losses import TeacherDistanceConfig

    assert perceptual_networks([TeacherDistanceConfig()], CPU) == {}


# ----------------------------------------------------------------------------------------------------------- numbers


class Cut:
    """Rows in parts that end where it is said."""

    def __init__(self, rows: Rows, ends: tuple[int, ...]) -> None:
        self._rows, self._ends = rows, ends
        self.count = ends[-1]

    def parts(self, *names: str) -> Iterator[Rows]:
        for start, stop in zip((0, *self._ends), self._ends, strict=False):
            yield {name: self._rows[name][start:stop] for name in names}

    def column(self, name: str) -> npt.NDArray[Any]:
        return self._rows[name]


WHAT = Columns((1, 5, 21), TOKENIZER.layout, ("detail", "semantic"), {"brightness": {"kind": "mean"}})


def test_errors_are_means_over_images_of_what_each_prefix_gives(rows: Rows) -> None:
    found = tokenizer_numbers(Cut(rows, (8, 21)), WHAT, {}, {})
    image_NCHW = torch.from_numpy(to_model(PIXELS))
    with torch.inference_mode():
        made = [TOKENIZER.detokenize(TOKENIZER.tokenize(image_NCHW), keep) for keep in WHAT.prefixes]
    errors_KN = torch.stack([(each - image_NCHW).double().square().mean((1, 2, 3)) for each in made])
    expected = {"mse": errors_KN.mean(1), "psnr": (10 * torch.log10(4 / errors_KN)).mean(1)}
    for metric, values in expected.items():
        assert [each.value for each in found if each.metric == metric] == pytest.approx(values.tolist(), rel=1e-5)


@pytest.mark.parametrize("ends", [(21,), (1, 21), (7, 7, 20, 21), tuple(range(1, 22))])
def test_however_rows_are_cut_the_digits_are_the_same(rows: Rows, ends: tuple[int, ...]) -> None:
    assert tokenizer_numbers(Cut(rows, ends), WHAT, {}, {}) == tokenizer_numbers(Cut(rows, (10, 21)), WHAT, {}, {})


def test_a_number_says_what_it_is_of(rows: Rows) -> None:
    by, of = {"reference": {"images": "r"}, "protocol": {"sizes": 1}}, {"tokenizer": "t"}
    found = tokenizer_numbers(Cut(rows, (21,)), WHAT, by, of)
    second = next(each for each in found if each.metric == "psnr" and each.measured_of["keep"] == 5)
    assert second.images == 21
    assert second.measured_by == {
        "reference": {"images": "r"},
        "protocol": {"sizes": 1, "standard_error": "over images"},
    }
    assert second.measured_of == {"tokenizer": "t", "keep": 5}
    distances = [each for each in found if each.metric == "brightness"]
    assert [(each.measured_of["keep"], each.measured_by["network"]) for each in distances] == [(21, {"kind": "mean"})]
    use = [each for each in found if each.metric == "code_use"]
    assert [(each.measured_by["protocol"]["branch"], each.measured_by["protocol"]["scale"]) for each in use] == [
        (branch, scale) for branch in ("detail", "semantic") for scale in (1, 2, 3)
    ]


def test_a_mean_stands_with_its_standard_error() -> None:
    rows: Rows = {"mse": np.array([[1.0], [2.0], [4.0], [5.0]]), "psnr": np.ones((4, 1)), "ssim": np.ones((4, 1))}
    found, certain, _ = tokenizer_numbers(Cut(rows, (4,)), Columns((1,), None, ()), {}, {})
    assert found.value == 3.0
    assert found.plus_minus == pytest.approx(np.sqrt(10 / 3) / 2)
    assert certain.plus_minus == 0


def test_codes_are_counted_over_all_parts() -> None:
    layout = TokenLayout((1, 2), (4,))
    tokens = np.array([[0, 1, 1], [0, 1, 2]], np.uint8)[..., None]
    rows: Rows = {name: np.ones((2, 1)) for name in ("mse", "psnr", "ssim")} | {"tokens": tokens}
    numbers = tokenizer_numbers(Cut(rows, (1, 2)), Columns((3,), layout, ("latents",)), {}, {})
    found = [(each.metric, each.value) for each in numbers[3:]]
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found == [
        ("code_use", 0.25),
        ("code_perplexity", 1.0),
        ("code_use", 0.5),
        ("code_perplexity", pytest.approx(np.exp(entropy))),
        ("dead_codes", 0.25),
    ]


@pytest.mark.parametrize("columns", [1, 3])
def test_a_mean_of_many_rows_has_the_same_digits_however_they_are_cut(columns: int) -> None:
    values = np.random.default_rng(0).lognormal(0, 3, (2000, columns))
    found = []
    for ends in ([], [1, 130, 1999], list(range(0, 2000, 7))):
        means = RowMeans()
        for part in np.split(values, ends):
            means.update(part)
        found.append([*means.means.tolist(), *means.deviations.tolist()])
    assert found[0] == found[1] == found[2]
    assert found[0] == pytest.approx([*values.mean(0), *values.std(0)], rel=1e-12)


def test_a_mean_far_from_zero_keeps_its_standard_error() -> None:
    means, values = RowMeans(), np.array([[1e8], [1e8 + 1], [1e8 + 2]])
    means.update(values)
    assert means.means.tolist() == [1e8 + 1]
    assert means.standard_errors == pytest.approx([np.sqrt(1 / 3)])
    assert means.deviations == pytest.approx([np.sqrt(2 / 3)])


def test_one_image_has_no_standard_error_and_none_no_number() -> None:
    means = RowMeans()
    means.update(np.array([[1.0]]))
    assert means.standard_errors is None
    with pytest.raises(ValueError, match="no images"):
        tokenizer_numbers(
            Cut({name: np.ones((0, 1)) for name in ("mse", "psnr", "ssim")}, (0,)), Columns((1,), None, ()), {}, {}
        )


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="diverged"):
        RowMeans().update(np.array([[np.nan]]))
