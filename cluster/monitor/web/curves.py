"""Curves for a screen: what is on their x axis, and which of their points are drawn.

Of a curve with more points than a screen has columns, each stretch keeps its lowest and its highest point, and the
curve its first and its last. So a spike of a single step is drawn, however long the run is.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from trainer.records.columns import Column, Columns
from trainer.report.charts import thinned_rows

Axis = Literal["steps", "images", "hours", "date"]
"""Optimizer steps, images that were trained on, hours since the stage was first started, or seconds of unix time."""
AXES: tuple[str, ...] = get_args(Axis)
MOST_POINTS = 1000
"""Of a curve that are sent, at most."""
_OF_ROWS: dict[str, str] = {"steps": "step", "images": "samples", "hours": "time", "date": "time"}
_HOUR = 3600.0


def positions(numbers: Columns, axis: Axis, began: float | None) -> Column:
    """Where each row is on an axis [N]; NaN where that is not on record."""
    found = numbers.get(_OF_ROWS[axis], np.full(len(numbers["step"]), np.nan))
    with np.errstate(over="ignore"):  # times from anywhere
        return (found - _start(numbers, began)) / _HOUR if axis == "hours" else found


def _start(numbers: Columns, began: float | None) -> float:
    if began is not None:
        return began
    times = numbers.get("time", np.empty(0))
    return float(np.fmin.reduce(times, initial=np.nan)) if len(times) else 0.0


def place(numbers: Columns, axis: Axis, began: float | None, step: float, time: float) -> float | None:
    """Where something that happened at a step, at a unix time in seconds, is on an axis; None if that is unknown."""
    if axis == "steps":
        return step
    if axis == "date":
        return time
    if axis == "hours":
        at = (time - _start(numbers, began)) / _HOUR
        return at if np.isfinite(at) else None
    samples = numbers.get("samples", np.empty(0))
    known = ~np.isnan(samples)
    if not known.any():
        return None
    return float(np.interp(step, np.append(0.0, numbers["step"][known]), np.append(0.0, samples[known])))


def _between(places: Column, low: float | None, high: float | None) -> slice:
    """Points on a stretch of the axis, and the next one on either side, so that a line leaves the screen."""
    first = 0 if low is None else max(0, int(np.searchsorted(places, low, "left")) - 1)
    stop = len(places) if high is None else int(np.searchsorted(places, high, "right")) + 1
    return slice(first, stop)


def curve(
    numbers: Columns,
    name: str,
    axis: Axis,
    began: float | None,
    *,
    low: float | None = None,
    high: float | None = None,
    most: int = MOST_POINTS,
) -> dict[str, Any] | None:
    """What is drawn of a number of metrics.jsonl, as JSON has it; None if it was never recorded.

    Args:
        numbers: of the stage, in order of steps.
        name: of the number.
        axis: what is on the x axis.
        began: unix time of the stage's first start.
        low: of the axis, where the screen begins.
        high: where it ends.
        most: points at most.
    """
    values = numbers.get(name)
    if values is None:
        return None
    places = positions(numbers, axis, began)
    known = np.isfinite(values) & np.isfinite(places)
    if not known.all():
        places, values = places[known], values[known]
    if not len(places):
        return None
    if np.any(places[1:] < places[:-1]):  # the clock of another machine
        order = np.argsort(places, kind="stable")
        places, values = places[order], values[order]
    stretch = _between(places, low, high)
    x, y = places[stretch], values[stretch]
    if len(y) > most:
        kept = thinned_rows(y, most)
        x, y = x[kept], y[kept]
    return {
        "x": rounded(x, 10),
        "y": rounded(y, 6),
        "points": len(places),
        "last": float(values[-1]),
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }


def rounded(values: Column, digits: int) -> list[float | int]:
    """Numbers with so many significant digits at least, and one more at most; whole ones as such."""
    sizes = np.abs(values).max(initial=0.0)
    if sizes < 2**53 and np.all(values == np.floor(values)):
        whole: list[float | int] = values.astype(np.int64).tolist()
        return whole
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        exponents = np.floor(np.log10(np.abs(values)))
        scale = 10.0 ** np.clip(digits - exponents, -300, 300)
        found = np.rint(values * scale) / scale
    kept: list[float | int] = np.where(np.abs(exponents) < 290, found, values).tolist()  # not the largest and smallest
    return kept
