"""Charts: ticks, smoothing, thinning, and that no number breaks one."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.report.charts import (
    MOST_POINTS,
    Line,
    column_chart,
    line_chart,
    linear_ticks,
    log_ticks,
    number,
    smoothed,
    stacked_bar,
    thinned,
)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6))
def test_linear_ticks_enclose_the_values_evenly_and_are_few(low: float, span: float) -> None:
    ticks = linear_ticks(low, low + span)
    slack = 1e-6 * max(abs(low), span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 8
    gaps = [after - before for before, after in pairwise(ticks)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-3)


@given(low=st.floats(1e-6, 1e3), ratio=st.floats(1.01, 1e6))
def test_log_ticks_enclose_the_values(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert ticks[0] <= low * (1 + 1e-9)
    assert ticks[-1] >= low * ratio * (1 - 1e-9)
    assert ticks == sorted(set(ticks))


def test_a_constant_has_ticks_around_it() -> None:
    assert min(linear_ticks(3, 3)) < 3 < max(linear_ticks(3, 3))
    assert linear_ticks(0, 0)[0] < 0 < linear_ticks(0, 0)[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0549, "0.0549"), (0.5, "0.5"), (1234567, "1.2e6"), (1200, "1,200"), (86.64, "86.6"), (2e-5, "2.0e-5"),
     (-0.25, "-0.25"), (None, "–"), (math.nan, "–"), (100.0, "100")],
)  # fmt: skip
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_smoothing_keeps_a_line_and_both_ends() -> None:
    line = [(float(i), 2.0 * i) for i in range(100)]
    assert [y for _, y in smoothed(line)] == pytest.approx([y for _, y in line])
    noisy = [(float(i), float(i % 2)) for i in range(100)]
    middle = [y for _, y in smoothed(noisy, 0.2)][20:80]
    assert all(0.4 < y < 0.6 for y in middle)


def test_a_line_stays_inside_the_chart() -> None:
    chart = line_chart([Line("loss", [(10, 5.0), (500, 0.3), (990, 4.4)])], title="t", x_label="x", y_label="y")
    root = ElementTree.fromstring(str(chart))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    points = root.find("polyline")
    assert points is not None
    places = [tuple(map(float, pair.split(","))) for pair in points.attrib["points"].split()]
    assert len(places) == 3
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    assert places[0][1] < places[1][1]  # the page's y grows downwards


def test_a_legend_names_the_lines_once_there_are_two() -> None:
    points = [(0.0, 1.0), (1.0, 2.0)]
    one = line_chart([Line("a", points), Line("raw", points, faint=True)], title="t", x_label="x", y_label="y")
    two = line_chart([Line("a", points), Line("b", points, 1)], title="t", x_label="x", y_label="y")
    assert "legend" not in one
    assert ">a</span>" in two
    assert ">b</span>" in two


def test_a_logarithmic_chart_leaves_out_what_has_no_logarithm() -> None:
    chart = line_chart(
        [Line("a", [(0, 0.0), (1, 0.01), (2, 10.0), (3, -1.0)])], title="t", x_label="x", y_label="y", log_y=True
    )
    points = re.search(r'points="([^"]*)"', chart)
    assert points is not None
    assert len(points[1].split()) == 2


def test_columns_are_as_high_as_their_values() -> None:
    chart = column_chart(["1", "2"], [0.2, 0.1], title="t", x_label="x", y_label="y")
    heights = [float(rect.attrib["height"]) for rect in ElementTree.fromstring(str(chart)).findall("rect")]
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)


def test_parts_of_a_bar_share_its_width() -> None:
    root = ElementTree.fromstring(str(stacked_bar([("a", 30.0), ("b", 90.0)], title="t")))
    first, second = (float(rect.attrib["width"]) + 1 for rect in root.findall("rect"))
    assert second == pytest.approx(3 * first, rel=0.01)


def spiky(count: int, at: int) -> np.ndarray:
    """A falling curve with one spike up at a point, and one down beside it."""
    x = np.arange(count, dtype=float)
    y = 5.0 / (1.0 + x)
    y[at], y[at + 1] = 99.0, -7.0
    return np.column_stack([x, y])


@pytest.mark.parametrize("at", [0, 1, 49_999, 50_000, 99_997])
def test_thinning_keeps_spikes_both_ends_and_the_order(at: int) -> None:
    points = spiky(100_000, at)
    found = thinned(points)
    assert len(found) <= MOST_POINTS
    assert found[[0, -1]].tolist() == points[[0, -1]].tolist()
    assert {(float(at), 99.0), (at + 1.0, -7.0)} <= {(x, y) for x, y in found.tolist()}
    assert np.all(np.diff(found[:, 0]) > 0)


@given(st.integers(0, 7000), st.integers(4, 2500))
def test_thinning_leaves_at_most_what_is_asked_for_and_each_stretch_its_extremes(count: int, most: int) -> None:
    points = np.column_stack([np.arange(count), np.random.default_rng(count).normal(size=count)])
    found = thinned(points, most)
    assert len(found) <= max(most, 0)
    if count <= most:
        assert found is points
    elif count:
        assert {points[:, 1].min(), points[:, 1].max()} <= set(found[:, 1])


@given(st.integers(0, 300), st.floats(0, 1))
def test_smoothing_is_the_mean_of_the_points_around(count: int, share: float) -> None:
    y = np.random.default_rng(count).normal(size=count) + 3.0
    reach = int(count * share / 2)
    sides = [min(reach, i, count - 1 - i) for i in range(count)]
    expected = [float(np.mean(y[i - side : i + side + 1])) for i, side in enumerate(sides)]
    found = smoothed(np.column_stack([np.arange(count), y]), share)
    assert found[:, 1].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "ys", [(1e308, -1e308, 3.0), (5e-324, 1e-320, 2.0), (-1e-320, 0.0, 1.0), (math.inf, math.nan, 1.0)]
)
def test_numbers_at_the_ends_of_what_a_float_holds_break_no_chart(ys: tuple[float, ...], log_y: bool) -> None:
    chart = line_chart([Line("a", list(enumerate(ys)))], title="t", x_label="x", y_label="y", log_y=log_y)
    assert not re.search("nan|inf", re.sub("aria-label", "", str(chart)))
    assert "<svg" in chart
