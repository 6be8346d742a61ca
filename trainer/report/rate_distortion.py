"""Charts of bits against squared error and distances: of a tokenizer, and of what as many bits are worth without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from trainer.evaluation.tokenizers.rate_distortion import Curve, RateDistortion
from trainer.report.charts import Line, chart_file, line_chart, stacked_files

_X = "bits of an image"


def distortion_charts(distortion: RateDistortion) -> list[tuple[str, Markup]]:
    """For a page, each with its title; points that are not there are left out."""
    return [(labels["title"], line_chart(lines, log_y=True, **labels)) for lines, labels in _charts(distortion)]


def distortion_file(distortion: RateDistortion) -> str:
    """The same below each other, as an SVG file."""
    return stacked_files([chart_file(lines, log_y=True, **labels) for lines, labels in _charts(distortion)])


def _charts(distortion: RateDistortion) -> Iterator[tuple[list[Line], dict[str, Any]]]:
    lines = [_line(curve, place, [each.mse for each in curve.points]) for place, curve in enumerate(distortion.curves)]
    yield lines, {"title": f"Squared error by {_X}", "x_label": _X, "y_label": "squared error"}
    for slot, called in distortion.networks.items():
        lines = [
            _line(curve, place, [each.distances.get(slot) for each in curve.points])
            for place, curve in enumerate(distortion.curves)
        ]
        yield lines, {"title": f"{called} by {_X}", "x_label": _X, "y_label": "distance"}


def _line(curve: Curve, colour: int, values: Sequence[float | None]) -> Line:
    found = zip([each.bits for each in curve.points], values, strict=True)
    return Line(curve.name, [(bits, each) for bits, each in found if bits is not None and each is not None], colour)
