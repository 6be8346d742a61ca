"""Charts of what perturbed tokens cost: distances and squared error of reconstructions by the share alpha.

The images' own tokens are those of alpha 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from trainer.evaluation.naming.metric_names import METRICS, network_name, title
from trainer.evaluation.naming.numbers import Number
from trainer.report.charts import Line, Point, chart_file, line_chart, stacked_files

_METRICS = ("fid", "sfid", "frechet_distance", "spatial_frechet_distance", "mse")
Key = tuple[str, str]
"""Metric, and the network that measured it."""


def perturbation_charts(evaluations: Mapping[str, Sequence[Number]]) -> list[tuple[str, Markup]]:
    """For a page, each with its title; none where nothing was perturbed.

    Args:
        evaluations: numbers of tokenizers by their names, each with a line of its own.
    """
    return [(labels["title"], line_chart(lines, **labels)) for lines, labels in _charts(evaluations)]


def perturbation_file(evaluations: Mapping[str, Sequence[Number]]) -> str:
    """The same below each other, as an SVG file."""
    return stacked_files([chart_file(lines, **labels) for lines, labels in _charts(evaluations)])


def _charts(evaluations: Mapping[str, Sequence[Number]]) -> list[tuple[list[Line], dict[str, Any]]]:
    found: dict[Key, tuple[str, list[Line]]] = {}
    for colour, (name, numbers) in enumerate(evaluations.items()):
        for key, (called, points) in _curves(numbers).items():
            found.setdefault(key, (called, []))[1].append(Line(name or called, points, colour))
    ordered = sorted(found.items(), key=lambda each: _METRICS.index(each[0][0]))
    return [
        (lines, {"title": f"{called} by perturbed tokens", "x_label": "alpha", "y_label": METRICS[metric].title})
        for (metric, _), (called, lines) in ordered
    ]


def _curves(numbers: Sequence[Number]) -> dict[Key, tuple[str, list[Point]]]:
    """The title of each metric that perturbed tokens have, and its values by alpha."""
    curves: dict[Key, dict[float, float]] = defaultdict(dict)
    titles: dict[Key, str] = {}
    for number in whole(numbers):
        if number.metric in _METRICS and number.pictures == "reconstructions":
            key, perturbation = (number.metric, network_name(number)), number.measured_of.get("perturbation")
            alpha = perturbation.get("alpha") if isinstance(perturbation, dict) else 0.0
            if isinstance(alpha, int | float):
                curves[key].setdefault(float(alpha), number.value)
                titles[key] = title(number) if perturbation else titles.get(key, "")
    return {key: (titles[key], sorted(points.items())) for key, points in curves.items() if titles[key]}


def whole(numbers: Sequence[Number]) -> list[Number]:
    """Those of all positions of the tokens."""
    most = largest_keep(numbers)
    return [number for number in numbers if number.measured_of.get("keep") in {None, most}]


def largest_keep(numbers: Sequence[Number]) -> int | None:
    """All positions, as far as numbers say; None where none does."""
    kept = [keep for number in numbers if isinstance(keep := number.measured_of.get("keep"), int)]
    return max(kept, default=None)
