"""Names of views: groups stand for their members, and mistakes are found when the config is read."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipeline.config import TokensConfig
from data_pipeline.images.views import VIEWS, check_fit, expand_views

TEN = tuple(f"ten_crop_{number}" for number in range(10))


def test_ten_crop_stands_for_ten_views() -> None:
    assert expand_views(("ten_crop",)) == TEN
    assert expand_views(("ten_crop_105",)) == tuple(f"ten_crop_105_{number}" for number in range(10))


def test_views_keep_the_order_in_which_they_are_named() -> None:
    assert expand_views(("center_flip", "ten_crop", "center")) == ("center_flip", *TEN, "center")


@pytest.mark.parametrize("word", ["ten_corp", "tencrop"])
def test_an_unknown_view_is_refused_with_the_nearest_name(word: str) -> None:
    with pytest.raises(ValueError, match=rf"'{word}' is no view; did you mean ten_crop\?"):
        expand_views((word,))


def test_a_view_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(ValueError, match="choose from center, center_flip, ten_crop, ten_crop_105"):
        expand_views(("zzz",))


@pytest.mark.parametrize("names", [("center", "center"), ("ten_crop", "ten_crop_4"), ("ten_crop_4", "ten_crop")])
def test_a_view_named_twice_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="named twice"):
        expand_views(names)


def test_no_view_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no view is named"):
        expand_views(())


def test_the_config_expands_views() -> None:
    assert TokensConfig(views=("ten_crop",)).views == TEN


def test_the_config_refuses_an_unknown_view() -> None:
    with pytest.raises(ValidationError, match="did you mean center_flip"):
        TokensConfig(views=("centre_flip",))


def test_padded_images_have_the_centre_and_its_mirror_only() -> None:
    check_fit("pad", ("center", "center_flip"))
    check_fit("crop", tuple(VIEWS))
    with pytest.raises(ValueError, match=r"ten_crop_105_0 is cut from a crop larger .* set data\.fit to crop"):
        check_fit("pad", expand_views(("center", "ten_crop_105")))


def test_a_view_needs_its_own_size_of_crop() -> None:
    crop = np.zeros((22, 22, 3), np.uint8)
    assert VIEWS["ten_crop_0"](crop, 20).shape == (20, 20, 3)
    with pytest.raises(ValueError, match="a view of 20 pixels is cut from 21 pixels, not 22"):
        VIEWS["ten_crop_105_0"](crop, 20)


def test_reading_the_config_of_the_data_loads_no_image_library() -> None:
    code = "import sys, data_pipeline.config; print([n for n in ('numpy', 'PIL', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
