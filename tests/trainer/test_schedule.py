from __future__ import annotations

import itertools

import pytest

from trainer.config import TrainerConfig
from trainer.engine.schedule import learning_rate


def config(**changes: float | str) -> TrainerConfig:
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
