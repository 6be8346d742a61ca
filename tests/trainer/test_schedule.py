from __future__ import annotations

import pytest

from trainer.config import TrainerConfig
from trainer.schedule import learning_rate


def config(**changes: float) -> TrainerConfig:
    return TrainerConfig(**({"steps": 100, "global_batch": 8, "learning_rate": 1.0} | changes))  # type: ignore[arg-type]


def test_warm_up_is_linear_and_ends_at_the_highest_rate() -> None:
    rates = [learning_rate(config(warmup_steps=9), step) for step in range(10)]
    assert rates == pytest.approx([0.1 * (step + 1) for step in range(10)])


def test_the_last_step_has_the_final_rate_and_the_middle_the_mean() -> None:
    cosine = config(steps=101, final_learning_rate=0.2)
    assert learning_rate(cosine, 100) == pytest.approx(0.2)
    assert learning_rate(cosine, 50) == pytest.approx(0.6)
