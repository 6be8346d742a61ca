"""What the report shows of the small-sample distances that were measured while a network trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from data_pipeline.text.counted import counted
from trainer.evaluation.naming.number_names import full_name
from trainer.evaluation.naming.numbers import Number
from trainer.report.charts import Line, line_chart
from trainer.report.data import Record, StageRecords

_LOOK, _KEY = "validation", "distance"
_OF_NUMBER = ("metric", "value", "images", "measured_by", "measured_of", "plus_minus")


def small_distances(records: StageRecords) -> dict[str, Any] | None:
    """What the template needs; None if none was measured."""
    events = {event["step"]: event for event in records.events if event.get("event") == _LOOK and _details(event)}
    numbers = [(step, number) for step in sorted(events) if (number := _number(events[step])) is not None]
    if not numbers:
        return None
    _, last = numbers[-1]
    alike = [(step, each) for step, each in numbers if (each.images, each.method) == (last.images, last.method)]
    title = f"Fréchet distance of {counted(last.images, last.pictures.removesuffix('s'))} by step"
    points = np.array([(float(step), each.value) for step, each in alike], np.float64)
    return {
        "title": title,
        "chart": line_chart([Line(last.pictures, points, 0)], title=title, x_label="step", y_label="Fréchet distance"),
        "name": full_name(last),
        "others": counted(len(numbers) - len(alike), "look") if len(alike) < len(numbers) else "",
        "left_out": _left_out([_details(events[step]) for step in sorted(events)]),
    }


def _details(event: Record) -> Mapping[str, Any]:
    found = event.get(_KEY)
    return found if isinstance(found, Mapping) else {}


def _number(event: Record) -> Number | None:
    """The number with its name; None where the look has none."""
    found = _details(event)
    try:
        return Number.from_json({key: found[key] for key in _OF_NUMBER if key in found})
    except ValidationError:
        return None


def _left_out(details: Sequence[Mapping[str, Any]]) -> str:
    """How many looks have no distance, and why the last of them has none."""
    reasons = [str(each["left_out"])[:500] for each in details if "left_out" in each]
    return f"{counted(len(reasons), 'look has', 'looks have')} none: {reasons[-1]}" if reasons else ""
