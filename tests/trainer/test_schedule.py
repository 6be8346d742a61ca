from __future__ import annotations

import itertools
import math

import pytest
from pydantic import ValidationError

from trainer.config import TrainerConfig
from trainer.engine.schedule import learning_rate, weight_decay


def config(**changes: float | str | None) -> TrainerConfig:
    return TrainerConfig(**({"steps": 100, "global_batch": 8, "learning_rate": 1.0} | changes))  # type: ignore[arg-type]


def test_warm_up_is_linear_and_ends_at_the_highest_rate() -> None:
    rates = [learning_rate(config(warmup_steps=9), step) for step in range(10)]
    assert rates == pytest.approx([0.1 * (step + 1) for step in range(10)])


def test_the_last_step_has_the_final_rate_and_the_middle_the_mean() -> None:
    cosine = config(steps=101, final_learning_rate=0.2)
    assert learning_rate(cosine, 100) == pytest.approx(0.2)
    assert learning_rate(cosine, 50) == pytest.approx(0.6)


def test_lin0_is_flat_for_a_twentieth_and_then_a_line() -> None:
    """VAR's schedule: warm-up from 0.5 %, constant for 5 % of the rest, linear to the final rate."""
    lin0 = config(steps=111, warmup_steps=10, final_learning_rate=0.01, schedule="lin0")
    assert learning_rate(lin0, 0) == pytest.approx(0.005)
    assert learning_rate(lin0, 5) == pytest.approx((0.005 + 1) / 2)
    assert [learning_rate(lin0, step) for step in (10, 15)] == pytest.approx([1, 1])
    assert learning_rate(lin0, 110) == pytest.approx(0.01)
    line = [learning_rate(lin0, step) for step in (20, 40, 60, 80, 100)]
    assert [a - b for a, b in itertools.pairwise(line)] == pytest.approx([(line[0] - line[-1]) / 4] * 4)


EPOCH = 1251
IMAGEFOLDER: dict[str, float | str] = {
    "steps": 200 * EPOCH,
    "learning_rate": 2.4e-4,
    "final_learning_rate": 5e-5 / 2.4e-4,
} | {
    "warmup_steps": EPOCH,
    "warmup_rate": 1e-5 / 2.4e-4,
    "schedule": "stairs",
    "stair_steps": EPOCH,
}


def test_stairs_are_imagefolders_rates_by_epoch() -> None:
    """Epoch 0 at 1e-5, then 5e-5 + (2.4e-4 - 5e-5) (1 + cos(pi e / 200)) / 2."""
    rates = [learning_rate(config(**IMAGEFOLDER), epoch * EPOCH) for epoch in range(200)]
    cosine = [5e-5 + 0.5 * (2.4e-4 - 5e-5) * (1 + math.cos(math.pi * epoch / 200)) for epoch in range(1, 200)]
    assert rates == pytest.approx([1e-5, *cosine], rel=1e-9)
    assert [rates[epoch] for epoch in (50, 100, 150)] == pytest.approx([2.12e-4, 1.45e-4, 7.8e-5], rel=5e-3)


def test_a_stair_lasts_an_epoch() -> None:
    stairs = config(**IMAGEFOLDER)
    for epoch in (0, 1, 57):
        first = learning_rate(stairs, epoch * EPOCH)
        assert learning_rate(stairs, (epoch + 1) * EPOCH - 1) == first != learning_rate(stairs, (epoch + 1) * EPOCH)


def test_stairs_warm_up_on_a_line_between_the_given_rate_and_the_highest() -> None:
    """The discriminator of ImageFolder, from its start on: 1e-5 for an epoch, then 2.1, 4.05, 6.0 and 8.0e-4."""
    changes = {
        "steps": 144 * EPOCH,
        "learning_rate": 8e-4,
        "final_learning_rate": 5e-5 / 8e-4,
        "warmup_rate": 1e-5 / 8e-4,
    }
    critic = config(**(IMAGEFOLDER | changes | {"warmup_steps": 4 * EPOCH}))
    rates = [learning_rate(critic, epoch * EPOCH) for epoch in range(6)]
    assert rates[:5] == pytest.approx([1e-5, 2.075e-4, 4.05e-4, 6.025e-4, 8e-4], rel=3e-3)
    assert rates[5] == pytest.approx(5e-5 + 0.5 * 7.5e-4 * (1 + math.cos(math.pi * 5 / 144)))
    assert learning_rate(critic, 143 * EPOCH) == pytest.approx(5e-5, rel=5e-3)


def test_the_warm_up_begins_at_a_given_rate() -> None:
    assert learning_rate(config(warmup_steps=10, warmup_rate=0.25), 0) == 0.25
    assert learning_rate(config(warmup_steps=10, warmup_rate=0.0), 5) == 0.5


@pytest.mark.parametrize("changes", [{"schedule": "stairs"}, {"stair_steps": 10}])
def test_stairs_need_their_length_and_nothing_else_has_one(changes: dict[str, float | str]) -> None:
    with pytest.raises(ValidationError, match="set both, or neither"):
        config(**changes)


def test_a_moving_average_that_is_not_kept_has_no_warm_up() -> None:
    with pytest.raises(ValidationError, match="set ema_decay above 0"):
        config(ema_warmup=True)


VAR_D30: dict[str, float | str] = {
    "steps": 438_200,
    "learning_rate": 3.2e-4,
    "final_learning_rate": 0.01,
    "warmup_steps": 8764,
    "schedule": "lin0",
    "weight_decay": 0.05,
    "final_weight_decay": 0.08,
}


def test_weight_decay_rises_from_the_first_step_to_the_last_as_vars_of_depth_30() -> None:
    d30 = config(**VAR_D30)
    assert weight_decay(d30, 0) == 0.05
    assert weight_decay(d30, 219_100) == pytest.approx(0.0650, abs=5e-5)
    assert weight_decay(d30, 438_199) == pytest.approx(0.08)
    assert learning_rate(d30, 219_100) == pytest.approx(1.7334e-4, rel=1e-4)
    assert learning_rate(d30, 438_199) == pytest.approx(3.2e-6)


def test_weight_decay_is_constant_unless_a_last_one_is_given() -> None:
    assert {weight_decay(config(weight_decay=0.3), step) for step in (0, 50, 99)} == {0.3}
    falling = config(weight_decay=0.3, final_weight_decay=0.0, steps=101)
    assert [weight_decay(falling, step) for step in (0, 50, 100)] == pytest.approx([0.3, 0.15, 0.0])
