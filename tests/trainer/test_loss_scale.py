"""The loss scale of fp16: halved by a skipped step, doubled by a row of applied ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.loss_scale import SMALLEST, LossScale

STEPS = st.lists(st.booleans(), max_size=60)


def after(scale: LossScale, steps: list[bool]) -> float:
    for applied in steps:
        scale.update(applied)
    return scale.value


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([False], 8),
        ([False, False], 4),
        ([True, True], 16),
        ([True, True, True], 32),
        ([True, True, False, True, True], 8),  # the row begins anew after a skip
        ([True] * 6, 64),
        ([False] * 9, SMALLEST),
    ],
)
def test_it_halves_and_doubles(steps: list[bool], expected: float) -> None:
    assert after(LossScale(16, window=3), steps) == expected


@given(STEPS, STEPS, st.integers(1, 5))
def test_restored_it_goes_on_as_if_nothing_had_happened(before: list[bool], later: list[bool], window: int) -> None:
    whole, restored = LossScale(2.0**16, window), LossScale(1, window)
    after(whole, before)
    restored.load_state(whole.state())
    assert after(restored, later) == after(whole, later)
    assert restored.state() == whole.state()
