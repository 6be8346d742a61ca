"""What is drawn of a curve: on which axis, and that no spike is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cluster.monitor.web.curves import curve, place, positions, rounded
from trainer.records.columns import Columns

BEGAN = 1_000.0


def rows(**more: list[float]) -> Columns:
    found = {
        "step": [1.0, 2.0, 4.0],
        "time": [1_036.0, 1_072.0, 4_600.0],
        "samples": [32.0, 64.0, 128.0],
        "loss": [3.0, 2.0, 1.0],
    }
    return {name: np.array(values) for name, values in (found | more).items()}


@pytest.mark.parametrize(
    ("axis", "expected"),
    [("steps", [1, 2, 4]), ("images", [32, 64, 128]), ("hours", [0.01, 0.02, 1.0]), ("date", [1_036, 1_072, 4_600])],
)
def test_an_axis_has_steps_images_hours_since_the_start_or_the_time(axis: str, expected: list[float]) -> None:
    assert positions(rows(), axis, BEGAN).tolist() == pytest.approx(expected)  # type: ignore[arg-type]
    drawn = curve(rows(), "loss", axis, BEGAN)  # type: ignore[arg-type]
    assert drawn is not None
    assert (drawn["x"], drawn["y"]) == (pytest.approx(expected), [3.0, 2.0, 1.0])


@pytest.mark.parametrize(("axis", "expected"), [("steps", 3), ("images", 96), ("hours", 0.5), ("date", 2_800)])
def test_what_happened_at_a_step_is_on_the_same_axis(axis: str, expected: float) -> None:
    assert place(rows(), axis, BEGAN, step=3, time=2_800.0) == pytest.approx(expected)  # type: ignore[arg-type]


def test_without_a_number_of_images_there_is_no_place_among_them() -> None:
    numbers = {name: column for name, column in rows().items() if name != "samples"}
    assert place(numbers, "images", BEGAN, 3, 2_800.0) is None
    assert curve(numbers, "loss", "images", BEGAN) is None


def test_rows_without_the_number_are_no_points() -> None:
    drawn = curve(rows(accuracy=[float("nan"), 0.5, float("nan")]), "accuracy", "steps", BEGAN)
    assert drawn is not None
    assert (drawn["x"], drawn["y"], drawn["points"], drawn["last"]) == ([2.0], [0.5], 1, 0.5)
    assert curve(rows(), "nothing", "steps", BEGAN) is None


def test_a_clock_that_goes_back_gives_no_curve_that_does() -> None:
    drawn = curve(rows(time=[1_072.0, 1_036.0, 4_600.0]), "loss", "date", BEGAN)
    assert drawn is not None
    assert (drawn["x"], drawn["y"]) == ([1_036.0, 1_072.0, 4_600.0], [2.0, 3.0, 1.0])


finite = st.floats(-1e6, 1e6, width=32)


@given(values=arrays(np.float64, st.integers(1, 3_000), elements=finite), most=st.integers(16, 200))
def test_a_thinned_curve_keeps_the_ends_and_every_minimum_and_maximum(values: np.ndarray, most: int) -> None:
    drawn = curve({"step": np.arange(len(values)) + 1.0, "loss": values}, "loss", "steps", None, most=most)
    assert drawn is not None
    x, y = np.array(drawn["x"]), np.array(drawn["y"])
    assert len(x) <= most
    assert np.all(np.diff(x) > 0)
    assert y == pytest.approx(values[x.astype(int) - 1], rel=1e-6)
    assert (x[0], x[-1]) == (1, len(values))
    assert (y.min(), y.max()) == (pytest.approx(values.min()), pytest.approx(values.max()))
    if len(values) > most:  # of each stretch between two points of the same size, the extremes are there
        size = -(-len(values) // ((most - 2) // 2))
        for start in range(0, len(values), size):
            stretch = values[start : start + size]
            inside = y[(x > start) & (x <= start + size)]
            assert (inside.min(), inside.max()) == (pytest.approx(stretch.min()), pytest.approx(stretch.max()))


@given(at=st.integers(0, 99_999), height=st.floats(2.0, 1e6))
def test_a_spike_of_one_step_among_100_000_is_drawn(at: int, height: float) -> None:
    values = np.ones(100_000)
    values[at] = height
    drawn = curve({"step": np.arange(100_000) + 1.0, "loss": values}, "loss", "steps", None)
    assert drawn is not None
    assert drawn["y"][drawn["x"].index(at + 1)] == pytest.approx(height)


def test_a_stretch_of_the_axis_has_its_points_and_the_next_on_either_side() -> None:
    steps = np.arange(1, 101, dtype=float)
    drawn = curve({"step": steps, "loss": steps}, "loss", "steps", None, low=40.5, high=43)
    assert drawn is not None
    assert drawn["x"] == [40, 41, 42, 43, 44]


@given(values=arrays(np.float64, st.integers(1, 50), elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_are_sent_with_six_digits_at_least(values: np.ndarray) -> None:
    assert rounded(values, 6) == pytest.approx(values.tolist(), rel=1e-6, abs=0)
