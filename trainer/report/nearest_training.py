"""What the report shows of the training images that are nearest to samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.report.charts import Line, line_chart, number
from trainer.report.data import Evaluation, Memorization


def nearest_training(evaluation: Evaluation) -> dict[str, Any] | None:
    """What the template needs; None if nothing was looked for."""
    found = evaluation.memorization
    if found is None:
        return None
    share = next((each for each in evaluation.numbers if each.metric == "memorized_share"), None)
    title = "Share of images by distance from their nearest training image"
    return {
        "network": found.network,
        "samples": f"{found.samples:,}",
        "held_out": f"{found.held_out:,}",
        "training_images": f"{found.training_images:,}",
        "share": "–" if share is None else f"{100 * share.value:.1f} %",
        "threshold": number(found.threshold),
        "chart": line_chart(_lines(found), title=title, x_label="distance", y_label="share of images"),
    }


def _lines(found: Memorization) -> list[Line]:
    """Of both kinds, how many are at most as far as each distance."""
    both = (("samples", found.quantiles_of_samples), ("held-out images", found.quantiles_of_held_out))
    return [
        Line(name, np.column_stack([quantiles, np.linspace(0, 1, len(quantiles))]), colour)
        for colour, (name, quantiles) in enumerate(both)
    ]
