"""Maps of the codes that a tokenizer uses: by group over its looks at held-out images, and as the evaluation found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.monitor.web.run_reading import RunReading, shown
from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.report.collect import read_evaluation
from trainer.report.data import Evaluation, StageRecords
from trainer.report.held_out import looks
from trainer.report.page import fold_names
from trainer.report.tokens import positions

MOST_LOOKS = 120
"""Columns of a map: of more looks, some at even distances."""


def code_maps(reading: RunReading) -> dict[str, Any]:
    """The maps of a run: `looks`, for each stage and fold the share of codes in use by group and look; `evaluation`."""
    found = []
    for folder, history in reading.histories.items():
        seen = [event for event in looks(StageRecords(folder, events=history.events.records)) if _codes(event)]
        places = sorted({round(place) for place in np.linspace(0, len(seen) - 1, min(MOST_LOOKS, len(seen)))})
        kept = [seen[place] for place in places]
        for fold in _codes(kept[-1]) if kept else ():
            rows = [_numbers(_codes(event).get(fold), "use") for event in kept]
            bounds = [_numbers(_codes(event).get(fold), "attainable") for event in kept]
            steps = [event["step"] for event in kept]
            entry = {"stage": folder, "fold": shown(str(fold)), "steps": steps, "use": rows, "attainable": bounds}
            found.append(entry | {"dead": _number(_codes(kept[-1])[fold], "dead")})
    return {"looks": found, "evaluation": _evaluated(reading)}


def _evaluated(reading: RunReading) -> dict[str, Any] | None:
    if not reading.state.get("has", {}).get("evaluation.json"):
        return None
    try:
        evaluation = read_evaluation(storage.join(reading.uri, "evaluation.json"))
    except UsageError as error:
        return {"error": shown(str(error))}
    return {"use": _use(evaluation), "positions": shown(positions(evaluation, fold_names(evaluation)))}


def _use(evaluation: Evaluation) -> list[dict[str, Any]]:
    names = fold_names(evaluation)
    return [
        {"fold": shown(name), "shares": [share if math.isfinite(share) else None for share in shares]}
        for name, shares in zip(names, evaluation.codebook_use, strict=True)
    ]


def _codes(event: Mapping[str, Any]) -> Mapping[str, Any]:
    found = event.get("codes")
    return found if isinstance(found, dict) else {}


def _numbers(record: Any, name: str) -> Sequence[float | None]:
    values = record.get(name) if isinstance(record, dict) else None
    return [_finite(value) for value in values[:1000]] if isinstance(values, list) else []


def _number(record: Any, name: str) -> float | None:
    return _finite(record.get(name)) if isinstance(record, dict) else None


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
