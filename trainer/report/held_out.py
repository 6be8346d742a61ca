"""What the report shows of a tokenizer's looks at held-out images while it trained, and of its film strip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.report.charts import COLOURS, Line, Points, line_chart, number
from trainer.report.data import Evaluation, Frame, Record, StageRecords, film_frames
from trainer.report.small_distances import small_distances

LOOK = "validation"
"""Name of the event, and of the numbers of metrics.jsonl before a _."""
_QUALITIES = (("mse", "squared error"), ("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("perceptual", "perceptual distance"))


def looks(records: StageRecords) -> list[Record]:
    """The looks that are on record, in order of steps; of a step that was done again, the last."""
    found = {event["step"]: event for event in records.events if event.get("event") == LOOK and _is_look(event)}
    return [found[step] for step in sorted(found)]


def held_out(records: StageRecords, evaluation: Evaluation, film: Sequence[Frame]) -> dict[str, Any] | None:
    """What the template needs; None if nothing was looked at."""
    seen = looks(records)
    if not seen:
        return None
    last = seen[-1]
    return {
        "images": last.get("images"),
        "step": last["step"],
        "errors": _error_chart(records, seen, evaluation),
        "prefixes": _prefix_chart(seen),
        "qualities": _qualities(last),
        "codes": _codes(last, evaluation),
        "overfitting": overfitting(seen),
        "distances": small_distances(records),
        "film": film_frames([frame for frame in film if frame.stage == records.stage]),
    }


def overfitting(seen: Sequence[Record]) -> str:
    """In a sentence, how the error of held-out images stands to that of training images and to its own past."""
    errors = [(event["step"], _last(event, "mse")) for event in seen]
    known = [(step, error) for step, error in errors if error is not None]
    if not known:
        return ""
    best, least = min(known, key=lambda entry: entry[1])
    step, error = known[-1]
    trained = _last(seen[-1].get("training"), "mse")
    parts = []
    if trained:
        parts.append(f"Held-out images have {number(error / trained)} times the error of training images")
    if best == step:
        parts.append("their error was never less than at the last look")
    else:
        parts.append(
            f"their error was least at step {best:,} ({number(least)}) and is {number(error)} at step {step:,}"
        )
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _is_look(event: Record) -> bool:
    prefixes = event.get("prefixes")
    return isinstance(prefixes, list) and all(isinstance(keep, int) for keep in prefixes) and bool(prefixes)


def _values(event: Any, name: str) -> list[float | None]:
    """Finite numbers of a list, None for all else; nothing if it is no list."""
    found = event.get(name) if isinstance(event, Mapping) else None
    return [_finite(value) for value in found] if isinstance(found, list) else []


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _last(event: Any, name: str) -> float | None:
    values = _values(event, name)
    return values[-1] if values else None


def _error_chart(records: StageRecords, seen: Sequence[Record], evaluation: Evaluation) -> Any:
    """Of all positions, held out and trained on; and what the bits are worth without the network."""
    lines = [
        Line("held-out images", _points(seen, "mse"), 0),
        Line("training images", _points([_of_training(event) for event in seen], "mse"), 1),
    ]
    steps = records.steps
    if evaluation.baselines is not None and evaluation.baselines.mse and len(steps):
        level = evaluation.baselines.mse[-1]
        ends = [(0.0, level), (float(max(steps.max(), seen[-1]["step"])), level)]
        lines.append(Line("principal components at the same bits", ends, 5))
    title = "Squared error of held-out and of training images by step"
    return line_chart(lines, title=title, x_label="step", y_label="squared error", log_y=True)


def _of_training(event: Record) -> Record:
    found = event.get("training")
    return {"step": event["step"]} | (found if isinstance(found, dict) else {})


def _points(seen: Sequence[Record], name: str, place: int = -1) -> Points:
    found = [(event["step"], values[place]) for event in seen if len(values := _values(event, name)) > max(place, 0)]
    kept = [(float(step), value) for step, value in found if value is not None]
    return np.array(kept, np.float64).reshape(-1, 2)


def _prefix_chart(seen: Sequence[Record]) -> Any:
    prefixes = seen[-1]["prefixes"]
    shown = sorted({round(place) for place in np.linspace(0, len(prefixes) - 1, min(COLOURS, len(prefixes)))})
    alike = [event for event in seen if event["prefixes"] == prefixes]
    lines = [Line(f"{prefixes[place]:,} positions", _points(alike, "mse", place), i) for i, place in enumerate(shown)]
    title = "Squared error of held-out images by positions kept"
    return line_chart(lines, title=title, x_label="step", y_label="squared error", log_y=True)


def _qualities(event: Record) -> dict[str, Any]:
    """A row for each prefix of the last look."""
    known = [(name, label) for name, label in _QUALITIES if _values(event, name)]
    rows = []
    for place, keep in enumerate(event["prefixes"]):
        columns = [_values(event, name) for name, _ in known]
        cells = [number(values[place]) if place < len(values) else "–" for values in columns]
        rows.append({"positions": f"{keep:,}", "cells": cells})
    return {"names": [label for _, label in known], "rows": rows}


def _codes(event: Record, evaluation: Evaluation) -> dict[str, Any]:
    """Of each branch a row of use by scale, and its dead codes."""
    found = event.get("codes")
    rows = []
    for name, use in found.items() if isinstance(found, dict) else ():
        shares, most, perplexity = (_values(use, each) for each in ("use", "attainable", "perplexity"))
        cells = [
            {
                "share": min(max(share or 0.0, 0.0), 1.0),
                "percent": _percent(share),
                "note": f"of at most {_percent(bound)}, perplexity {number(among)}",
            }
            for share, bound, among in zip(shares, most, perplexity, strict=False)
        ]
        dead = _finite(use.get("dead")) if isinstance(use, dict) else None
        rows.append({"fold": str(name), "cells": cells, "dead": _percent(dead)})
    groups = max((len(row["cells"]) for row in rows), default=0)
    known = len(evaluation.groups) == groups
    return {"groups": [f"{each:,}" for each in evaluation.groups] if known else ["–"] * groups, "rows": rows}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
