"""What a config asks of a tokenizer, and what it says of one that does not reach it."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.config import TokenizerGate
from data_pipeline.shards.measured import Measured, measured_of
from trainer.evaluation.tokenizers.gate import failures

CODES = {"use": [0.1, 0.4], "attainable": [0.2, 0.8], "perplexity": [3.0, 9.0], "dead": 0.25}
LOOK: dict[str, Any] = {
    "step": 9,
    "images": 50,
    "mse": [0.4, 0.05],
    "psnr": [10.0, 19.0],
    "ssim": [0.2, 0.7],
    "codes": {"detail": CODES, "semantic": CODES | {"use": [0.1, 0.76], "dead": 0.1}},
}


def measured() -> Measured:
    found = measured_of(LOOK)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"use": 0.5}, []),
        (
            {"use": 0.6},
            ["use 0.5 of branch detail at scale 2 of 2, and not 0.6 (40.0% of its codes, where 80.0%"],
        ),
        ({"use": 0.96}, ["use 0.5 of branch detail", "use 0.95 of branch semantic"]),
        ({"dead": 0.25}, []),
        ({"dead": 0.2}, ["dead 0.25 of branch detail"]),
        ({"mse": 0.05, "psnr": 19}, []),
        ({"mse": 0.04}, ["mse 0.05 of all scales, and not at most 0.04"]),
        ({"psnr": 20}, ["psnr 19 dB of all scales, and not 20"]),
        ({"use": 0.6, "mse": 0.01}, ["use 0.5 of branch detail", "mse 0.05"]),
        ({}, []),
    ],
)
def test_each_number_outside_is_named_with_its_branch_and_scale(asked: dict[str, float], says: list[str]) -> None:
    found = list(failures(TokenizerGate.model_validate(asked), measured()))
    assert len(found) == len(says)
    for sentence, begin in zip(found, says, strict=True):
        assert sentence.startswith(begin)


def test_the_card_has_the_numbers_of_all_positions() -> None:
    found = measured()
    assert (found.step, found.images, found.mse, found.psnr, found.ssim) == (9, 50, 0.05, 19.0, 0.7)


@pytest.mark.parametrize("wrong", [{"mse": [0.1, None]}, {"codes": None}, {"psnr": []}, {"images": "x"}])
def test_a_look_with_numbers_missing_is_no_measurement(wrong: dict[str, Any]) -> None:
    assert measured_of(LOOK | wrong) is None
