"""What is kept of a reference: which tokens, and why some wishes mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import FoldtrainError, UsageError
from model.config import ImageFolderConfig, TokenizerConfig
from model.config.titok import TiTokConfig
from trainer.inference.kept_tokens import kept_places, mean_of_cells

FOLDED = ImageFolderConfig(image_size=16, patch_size=4, scales=(1, 2, 4), dropout_min_scales=1)
ONE_BRANCH = ImageFolderConfig(image_size=16, patch_size=4, scales=(1, 2, 4), dropout_min_scales=1, branches=1)
GRID = ImageFolderConfig(image_size=16, patch_size=4, scales=(4,), quantizer_dropout=0, branches=1)
ROW = TiTokConfig(image_size=32, latents=8)


@pytest.mark.parametrize(("name", "fold"), [("detail", 0), ("semantic", 1)])
def test_a_branch_is_a_fold(name: str, fold: int) -> None:
    kept = kept_places(FOLDED, name)
    assert kept.shape == (21, 2)
    assert kept[:, fold].all()
    assert not kept[:, 1 - fold].any()


def test_scales_are_the_first_groups_of_all_branches() -> None:
    assert np.flatnonzero(kept_places(FOLDED, "scales:2").all(1)).tolist() == [0, 1, 2, 3, 4]
    assert kept_places(FOLDED, "scales:2").sum() == 10


def test_latents_are_the_first_positions() -> None:
    assert np.flatnonzero(kept_places(ROW, "latents:3")).tolist() == [0, 1, 2]


def write_mask(path: Path, white: tuple[slice, slice], size: int = 16) -> str:
    pixels = np.zeros((size, size), np.uint8)
    pixels[white] = 255
    Image.fromarray(pixels).save(path)
    return f"mask:{path}"


def test_a_mask_keeps_the_places_of_each_scale_that_are_white_for_the_most_part(tmp_path: Path) -> None:
    keep = write_mask(tmp_path / "left.png", (slice(None), slice(0, 7)))  # 7 of 16 columns
    kept = kept_places(FOLDED, keep)
    assert (kept[:, 0] == kept[:, 1]).all()
    assert not kept[0, 0]  # the one place of the first scale is white to 7/16
    assert kept[1:5, 0].reshape(2, 2).tolist() == [[True, False]] * 2  # 7/8, 0
    assert kept[5:, 0].reshape(4, 4).tolist() == [[True, True, False, False]] * 4  # 1, 3/4, 0, 0
    assert kept_places(GRID, keep).sum() == 8


def test_a_mask_of_another_size_is_seen_as_an_image_is(tmp_path: Path) -> None:
    keep = write_mask(tmp_path / "top.png", (slice(0, 32), slice(None)), 64)
    assert kept_places(GRID, keep)[:, 0].reshape(4, 4).tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


def test_cells_that_cut_pixels_take_their_share() -> None:
    image = np.arange(15, dtype=np.float64).reshape(3, 5)
    for side in (1, 2, 3, 4, 7):
        fine = image.repeat(side, 0).repeat(side, 1)  # where every cell is whole pixels
        expected = fine.reshape(side, 3, side, 5).mean((1, 3))
        np.testing.assert_allclose(mean_of_cells(image, side), expected)


@pytest.mark.parametrize(
    ("config", "keep", "said"),
    [
        (FOLDED, "texture", "this tokenizer's branches are detail, semantic"),
        (ONE_BRANCH, "detail", "has one branch, and all its tokens would be kept"),
        (FOLDED, "scales:3", "of 3 scales at most 2 leave something to draw"),
        (FOLDED, "scales:0", "give a whole number from 1 on"),
        (FOLDED, "scales:many", "give a whole number from 1 on"),
        (FOLDED, "latents:4", r"these tokens are grids, .* give scales:N or mask:FILE"),
        (GRID, "latents:4", r"these tokens are grids, .* give mask:FILE"),
        (GRID, "scales:1", "of one scale; give mask:FILE"),
        (ROW, "scales:1", "of one scale; give latents:N"),
        (ROW, "latents:8", "of 8 latents at most 7 leave something to draw"),
        (ROW, "mask:a.png", "no token of this tokenizer has a place in the image"),
        (FOLDED, "mask:", "name the file behind the colon"),
        (FOLDED, "rows:3", "give a branch's name, scales:N, latents:N or mask:FILE"),
        (FOLDED, "mask:none.png", "there is no image none.png"),
    ],
)
def test_what_means_nothing_is_refused_with_the_reason(config: TokenizerConfig, keep: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        kept_places(config, keep)


@pytest.mark.parametrize(("grey", "said"), [(255, "keeps every token"), (0, "keeps no token")])
def test_a_mask_of_one_colour_is_refused(tmp_path: Path, grey: int, said: str) -> None:
    Image.new("L", (16, 16), grey).save(tmp_path / "plain.png")
    with pytest.raises(UsageError, match=said):
        kept_places(FOLDED, f"mask:{tmp_path / 'plain.png'}")


def test_a_mask_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("x")
    with pytest.raises(FoldtrainError, match=r"text\.png"):
        kept_places(FOLDED, f"mask:{tmp_path / 'text.png'}")
