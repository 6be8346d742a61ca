"""Names of views: groups stand for their members, and mistakes are found when the config is read."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipeline.config import TokensConfig
from data_pipeline.images.crop_kinds import ADM_RANDOM, VAR_RANDOM
from data_pipeline.images.views import VIEWS, RandomView, check_fit, expand_views, view_of

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


def test_random_views_are_named_by_number_seed_and_mirror() -> None:
    assert TokensConfig.model_validate({"views": [{"random": 2}]}).views == ("random_0", "random_1")
    mirrored = TokensConfig.model_validate({"views": ["center", {"random": 1, "seed": 7, "flip": True, "crop": "var"}]})
    assert mirrored.views == ("center", "random_var_0_seed_7", "random_var_0_seed_7_flip")


def test_a_random_view_says_all_by_its_name() -> None:
    assert view_of("random_12") == RandomView(ADM_RANDOM, 12)
    assert view_of("random_var_0_seed_7_flip") == RandomView(VAR_RANDOM, 0, 7, mirrored=True)
    assert TokensConfig(views=("random_12", "random_var_0_seed_7_flip")).views[0] == "random_12"


@pytest.mark.parametrize("name", ["random_", "random_01", "random_1000", "random_0_seed_0", f"random_0_seed_{2**63}"])
def test_a_random_view_has_one_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no view"):
        expand_views((name,))


@pytest.mark.parametrize("given", [{"random": 0}, {"random": 1001}, {"random": 1, "seed": -1}, {"randm": 1}, {}])
def test_random_views_that_cannot_be_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=r"stands for no random views .*an example is \{random: 4, seed: 7"):
        TokensConfig.model_validate({"views": [given]})


def test_random_views_named_twice_are_refused() -> None:
    with pytest.raises(ValidationError, match="random_0: named twice"):
        TokensConfig.model_validate({"views": ["random_0", {"random": 2}]})


def test_the_draws_of_a_random_view_are_a_keyed_hash_of_the_images_key() -> None:
    digest = hashlib.blake2b(b"n01/1", digest_size=8, key=b"7 3 side").digest()
    expected = (int.from_bytes(digest, "little") >> 11) / 2**53
    view = RandomView(ADM_RANDOM, 3, 7)
    assert view.draws(b"n01/1", ("side",)) == (expected,)
    assert view.draws(b"n01/1", ("x", "side"))[1] == expected
    assert RandomView(ADM_RANDOM, 3, 7, mirrored=True).draws(b"n01/1", ("side",)) == (expected,)


def test_the_draws_of_random_views_are_uniform_and_differ_by_key_number_seed_and_name() -> None:
    draws = [RandomView(ADM_RANDOM, 0).draws(str(number).encode(), ("y",))[0] for number in range(1, 1001)]
    assert np.histogram(draws, 4, (0, 1))[0] == pytest.approx([250] * 4, abs=60)
    differing = {
        RandomView(ADM_RANDOM, number, seed).draws(b"1", (name,))
        for number in (0, 1)
        for seed in (0, 1)
        for name in "xy"
    }
    assert len(differing) == 8


def test_padded_images_have_no_random_views() -> None:
    with pytest.raises(ValueError, match=r"random_0 is cut from a crop larger .* set data\.fit to crop"):
        check_fit("pad", ("random_0",))
