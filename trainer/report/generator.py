"""What the report shows of a generator's looks at held-out tokens while it trained, and of what it drew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.report.charts import Line, Points, line_chart, number
from trainer.report.data import Frame, Record, StageRecords, film_frames
from trainer.report.small_distances import small_distances
from trainer.report.training import groups_of, some

_LOOK = "validation"


def token_looks(records: StageRecords) -> list[Record]:
    """The looks at held-out tokens that are on record, in order of steps; of a step that was done again, the last."""
    found = {event["step"]: event for event in records.events if event.get("event") == _LOOK and _losses(event)}
    return [found[step] for step in sorted(found)]


def pictured_steps(records: StageRecords) -> set[int]:
    """Steps after which images were drawn."""
    events = (event for event in records.events if event.get("event") == _LOOK)
    return {event["step"] for event in events if _value(event, "pictures_seconds") is not None}


def held_out_tokens(records: StageRecords, film: Sequence[Frame]) -> dict[str, Any] | None:
    """What the template needs; None if neither tokens were looked at nor images drawn or compared."""
    seen, frames = token_looks(records), [frame for frame in film if frame.stage == records.stage]
    distances = small_distances(records)
    if not seen and distances is None and not (frames and pictured_steps(records)):
        return None
    return {
        "tokens": _tokens(seen) if seen else None,
        "distances": distances,
        "film": film_frames(frames),
        "drawing": _drawing(records),
    }


def _tokens(seen: Sequence[Record]) -> dict[str, Any]:
    last = seen[-1]
    return {
        "samples": number(_value(last, "samples")),
        "step": f"{last['step']:,}",
        "losses": _loss_chart(seen),
        "groups": _group_chart(seen),
        "summary": summary(seen),
        "table": _table(last),
    }


def summary(seen: Sequence[Record]) -> str:
    """In sentences, how the held-out loss stands to that of training images and to its own past."""
    known = [(event["step"], loss) for event in seen if (loss := _losses(event).get("loss")) is not None]
    if not known:
        return ""
    (best, least), (step, loss) = min(known, key=lambda entry: entry[1]), known[-1]
    trained, tokens = _losses(seen[-1], "training").get("loss"), _value(seen[-1], "tokens_per_sample")
    if _is_masked(seen[-1]):
        parts = [f"After step {step:,} a masked token of a held-out image costs {number(loss)} nats, given the others"]
        parts.append("masks hide another share of each image, so that this is no likelihood of images")
    else:
        parts = [f"After step {step:,} a held-out token costs {number(loss)} nats"]
        parts[0] += f", an image {number(loss * tokens)}" if tokens else ""
    if trained is not None:
        parts.append(f"tokens of training images cost {number(trained)}, {number(loss - trained)} less")
    if best == step:
        parts.append("the held-out loss was never less than at this last look")
    else:
        parts.append(f"the held-out loss was least after step {best:,} ({number(least)}): what came later overfits")
    return "; ".join(parts) + "."


def _is_masked(event: Record) -> bool:
    """Whether the loss is of tokens that are masked, given those that are not."""
    return "masked_loss" in _losses(event)


def _unit(event: Record) -> str:
    return "nats per masked token (no likelihood)" if _is_masked(event) else "nats per token"


def _losses(event: Record, whose: str = "held_out") -> dict[str, float]:
    """The finite numbers that a look has found."""
    found = event.get(whose)
    values = found.items() if isinstance(found, Mapping) else ()
    return {str(name): value for name, each in values if (value := _finite(each)) is not None}


def _value(event: Record, name: str) -> float | None:
    return _finite(event.get(name))


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _points(seen: Sequence[Record], whose: str, names: Sequence[str]) -> Points:
    """Means over some numbers of each look that has all of them."""
    found = [(float(event["step"]), [_losses(event, whose).get(name) for name in names]) for event in seen]
    kept = [
        (step, float(np.mean([each for each in values if each is not None])))
        for step, values in found
        if all(each is not None for each in values)
    ]
    return np.array(kept, np.float64).reshape(-1, 2)


def _loss_chart(seen: Sequence[Record]) -> Any:
    lines = [
        Line("held-out images", _points(seen, "held_out", ["loss"]), 0),
        Line("training images", _points(seen, "training", ["loss"]), 1),
    ]
    title = "Loss of tokens of held-out and of training images by step"
    return line_chart(lines, title=title, x_label="step", y_label=_unit(seen[-1]))


def _group_chart(seen: Sequence[Record]) -> Any:
    """Of held-out tokens, a line for each group; of many groups some at even distances. None with a single group."""
    groups = groups_of(list(_losses(seen[-1])), "loss")
    if len(groups) < 2:
        return None
    lines = [
        Line(f"group {group + 1}", _points(seen, "held_out", groups[group]), colour)
        for colour, group in enumerate(some(list(groups)))
    ]
    title = "Loss of held-out tokens of each group by step"
    return line_chart(lines, title=title, x_label="step", y_label=_unit(seen[-1]))


def _table(event: Record) -> dict[str, Any]:
    """A row for each group of the last look, and columns of loss and accuracy for each fold."""
    losses, accuracies = (groups_of(list(_losses(event)), kind) for kind in ("loss", "accuracy"))
    folds = max((len(names) for names in losses.values()), default=0)
    found, heads = _losses(event), []
    heads += [f"loss, fold {fold + 1}" for fold in range(folds)]
    heads += [f"right, fold {fold + 1}" for fold in range(folds)] if accuracies else []
    rows = []
    for group, names in losses.items():
        cells = [number(found[name]) for name in names]
        cells += [f"{100 * found[name]:.1f} %" for name in accuracies.get(group, ())]
        rows.append({"group": f"{group + 1}", "cells": cells})
    return {"heads": heads, "rows": rows}


def _drawing(records: StageRecords) -> str:
    """How long it took to draw a picture."""
    events = (event for event in records.events if event.get("event") == _LOOK)
    seconds = [value for event in events if (value := _value(event, "pictures_seconds")) is not None]
    if not seconds:
        return ""
    return f"One worker drew each in {number(float(np.median(seconds)))} s (median), for which the others waited."
