"""What evaluation.json has of samples and of reconstructions for the report, from their rows.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.evaluation.measures import LABEL, MeasuredRows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.networks.network_rows import Slot
from trainer.evaluation.set_numbers import Judge


def accuracy_record(drawn: MeasuredRows, real: MeasuredRows, judge: Slot | None, classes: int) -> dict[str, Any]:
    """Samples of the asked class, as a judge sees them, and how far it can be trusted: what it finds of real images.

    Args:
        drawn: rows of samples.
        real: rows of real images.
        judge: None where there is none.
        classes: that there are. One of which no sample was drawn has None as its accuracy.
    """
    if judge is None:
        return dict.fromkeys(("class_accuracy", "class_accuracy_per_class", "judge_accuracy_on_real"))
    right_N, label_N = Judge(judge).is_right(drawn), np.asarray(drawn.column(LABEL))
    of_classes = [right_N[label_N == label] for label in range(classes)]
    return {
        "class_accuracy": float(right_N.mean()),
        "class_accuracy_per_class": [float(each.mean()) if len(each) else None for each in of_classes],
        "judge_accuracy_on_real": float(Judge(judge).is_right(real).mean()),
    }


def distance_by(numbers: Sequence[Number], slot: Slot | None) -> float | None:
    """The Fréchet distance in the features of a network; None where it was not measured."""
    if slot is None:
        return None
    found = (each for each in numbers if each.metric in {"frechet_distance", "fid"})
    return next((each.value for each in found if each.measured_by.get("network") == slot.identity), None)


def quality_record(numbers: Sequence[Number]) -> dict[str, list[float]]:
    """Errors of reconstructions at each prefix, from their numbers."""
    return {
        f"{metric}_of_prefixes": [number.value for number in numbers if number.metric == metric]
        for metric in ("mse", "psnr", "ssim")
    }
