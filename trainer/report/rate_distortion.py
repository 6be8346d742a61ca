"""The chart of bits against squared error: of a tokenizer, and of what as many bits are worth without it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from trainer.evaluation.tokenizers.rate_distortion import Curve
from trainer.report.charts import Line, chart_file, line_chart

_LABELS = {"title": "squared error by bits of an image", "x_label": "bits of an image", "y_label": "squared error"}


def distortion_chart(curves: Sequence[Curve]) -> Markup:
    """For a page; points that are not there are left out."""
    return line_chart(_lines(curves), log_y=True, **_LABELS)


def distortion_file(curves: Sequence[Curve]) -> str:
    """The same as an SVG file."""
    return chart_file(_lines(curves), log_y=True, **_LABELS)


def _lines(curves: Sequence[Curve]) -> list[Line]:
    return [
        Line(
            curve.name,
            [(each.bits, each.mse) for each in curve.points if each.bits is not None and each.mse is not None],
            colour,
        )
        for colour, curve in enumerate(curves)
    ]
