"""An evaluation of images or of a tokenizer → one HTML file: no script, no request to anywhere.

Every number with its full name, and the charts that follow from the numbers: by prefix of the tokens, by perturbed
tokens, bits against error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

from markupsafe import Markup

from trainer.evaluation.naming.metric_names import metric_of, title
from trainer.evaluation.naming.number_names import full_name, value_text, words_of
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.tokenizers.rate_distortion import RateDistortion
from trainer.report.charts import Line, Point, line_chart
from trainer.report.page import render
from trainer.report.perturbation import largest_keep, perturbation_charts
from trainer.report.rate_distortion import distortion_charts

_TOLD = ("keep", "perturbation")
"""Parts of a name in which numbers of one evaluation differ, beside their titles."""


def evaluation_page(subject: str, numbers: Sequence[Number], distortion: RateDistortion | None = None) -> str:
    """The whole page. All text is escaped.

    Args:
        subject: what was measured, for the heading.
        numbers: as in evaluation.json.
        distortion: curves of bits against error.
    """
    return render(
        "evaluation.html",
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        subject=subject,
        rows=[
            (title(number), ", ".join(words_of(number.measured_of, _TOLD)), value_text(number), f"{number.images:,}")
            for number in numbers
        ],
        names=[full_name(number) for number in numbers],
        prefixes=prefix_charts(numbers),
        perturbed=perturbation_charts({"": numbers}),
        distortion=[] if distortion is None else distortion_charts(distortion),
    )


def prefix_charts(numbers: Sequence[Number]) -> list[tuple[str, Markup]]:
    """What each prefix of the tokens gives: a chart, with its title, of each number that there is of several."""
    every, curves = largest_keep(numbers), defaultdict[tuple[str, str], list[Point]](list)
    for number in numbers:
        keep = number.measured_of.get("keep", every if number.pictures == "reconstructions" else None)
        if isinstance(keep, int) and not number.measured_of.get("perturbation"):
            curves[title(number), metric_of(number).title].append((float(keep), number.value))
    return [
        (
            called := f"{name} by prefix",
            line_chart([Line(name, sorted(points))], title=called, x_label="positions", y_label=metric),
        )
        for (name, metric), points in curves.items()
        if len(points) > 1
    ]
