"""What the report shows of a stage's training: its loss and terms, learning rate, gradient norm and throughput."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from trainer.records.columns import Column
from trainer.report.charts import COLOURS, Line, Points, line_chart, number, smoothed, thinned
from trainer.report.data import StageRecords, is_term

_OF_GROUP = re.compile(r"(loss|accuracy)_group(\d+)_fold(\d+)")
_WIDE = 20
"""A chart whose largest value is so many times its smallest has a logarithmic axis."""


def training(records: StageRecords) -> dict[str, Any]:
    """What the template needs of one stage."""
    terms = [name for name in sorted(filter(is_term, records.metrics)) if records.has(name)]
    plain = [name for name in terms if not _OF_GROUP.fullmatch(name)]
    return {
        "stage": records.stage,
        "last": _last(records, "loss"),
        "steps": f"{int(records.steps[-1]):,}",
        "epochs": _last(records, "epoch") if records.has("epoch") else None,
        "crops": _last(records, "crop_epoch") if records.has("crop_epoch") else None,
        "loss": _loss_chart(records),
        "terms": _chart(records, f"{records.stage}: what was recorded beside the loss", _named(plain[:COLOURS])),
        "log": _is_wide(records, plain[:COLOURS]),
        "left_out": ", ".join(plain[COLOURS:]),
        "groups": [_group_chart(records, kind, terms) for kind in ("loss", "accuracy")],
        "course": list(_course(records)),
    }


def series(records: StageRecords, key: str) -> Points:
    """A number by step, where it was recorded."""
    values = records.metrics.get(key)
    if values is None:
        return np.empty((0, 2))
    points = np.column_stack([records.steps, values])
    kept = ~np.isnan(values)
    return points if kept.all() else points[kept]


def groups_of(names: Sequence[str], kind: str) -> dict[int, list[str]]:
    """Of the names of a kind of number (loss, accuracy), those of each group, by group."""
    found: dict[int, list[str]] = {}
    for name in names:
        match = _OF_GROUP.fullmatch(name)
        if match and match[1] == kind:
            found.setdefault(int(match[2]), []).append(name)
    return dict(sorted(found.items()))


def some(items: Sequence[int], most: int = COLOURS) -> list[int]:
    """At most so many, at even distances, the first and the last among them."""
    places = sorted({round(place) for place in np.linspace(0, len(items) - 1, min(most, len(items)))})
    return [items[place] for place in places] if items else []


def _last(records: StageRecords, key: str) -> str:
    values = records.numbers(key)
    return number(float(values[-1])) if len(values) else "–"


def _loss_chart(records: StageRecords) -> Markup:
    loss = series(records, "loss")
    crowded = len(loss) > 30
    lines = [Line("every record", loss, faint=crowded)] + ([Line("smoothed", smoothed(loss))] if crowded else [])
    return line_chart(lines, title=f"{records.stage}: loss by step", x_label="step", y_label="loss")


def _named(names: Sequence[str]) -> dict[str, str]:
    return {name: name.replace("_", " ") for name in names}


def _chart(records: StageRecords, title: str, labels: dict[str, str]) -> Markup | None:
    """Lines of some numbers; None if there are none."""
    if not labels:
        return None
    found = {label: thinned(smoothed(series(records, name))) for name, label in labels.items()}
    lines = [Line(label, points, colour) for colour, (label, points) in enumerate(found.items())]
    y_label = lines[0].label if len(lines) == 1 else "value"
    wide = _is_wide(records, list(labels))
    return line_chart(lines, title=title, x_label="step", y_label=y_label, log_y=wide)


def _is_wide(records: StageRecords, names: Sequence[str]) -> bool:
    return _spread([records.metrics[name] for name in names]) > _WIDE if names else False


def _spread(values: Sequence[Column]) -> float:
    """Largest over smallest, 1 if any is not positive (a logarithmic axis could not show it)."""
    low = min((float(np.fmin.reduce(each)) for each in values), default=0.0)
    return max(float(np.fmax.reduce(each)) for each in values) / low if low > 0 else 1.0


def _group_chart(records: StageRecords, kind: str, terms: Sequence[str]) -> dict[str, Any] | None:
    """A line for each group, the mean over its folds; of many groups some at even distances. None if there is none."""
    groups = groups_of(terms, kind)
    if len(groups) < 2:
        names = next(iter(groups.values()), [])
        labels = {name: f"fold {name.rpartition('fold')[2]}" for name in names[:COLOURS]}
        chart = _chart(records, f"{records.stage}: {kind} of each fold by step", labels)
        return {"chart": chart, "text": f"{kind.capitalize()} of each fold"} if chart is not None else None
    shown = some(list(groups))
    lines = []
    for colour, group in enumerate(shown):
        values = [series(records, name) for name in groups[group]]
        steps = [each[:, 0] for each in values]
        if all(np.array_equal(each, steps[0]) for each in steps):
            mean = np.column_stack([steps[0], np.mean([each[:, 1] for each in values], axis=0)])
            lines.append(Line(f"group {group + 1}", thinned(smoothed(mean)), colour))
    title = f"{records.stage}: {kind} of each group by step"
    chart = line_chart(lines, title=title, x_label="step", y_label=kind)
    among = f" (of {len(groups)}, some)" if len(shown) < len(groups) else ""
    return {"chart": chart, "text": f"{kind.capitalize()} of each group{among}, mean over the folds"}


def _course(records: StageRecords) -> Any:
    """Learning rate, gradient norm and throughput by step, as far as they are on record."""
    norms = sorted(name for name in records.metrics if name.startswith("grad_norm") and records.has(name))
    asked = [
        ("learning rate", ["learning_rate"], "Learning rate after each record's last step"),
        ("gradient norm", norms, "Norm of the gradient before it is clipped, mean over the steps of a record"),
        ("samples/s", ["samples_per_second"], "Samples per second, without looks at held-out data"),
    ]
    for label, names, text in asked:
        known = [name for name in names if records.has(name)]
        lines = [
            Line(name.removeprefix("grad_norm_") if len(known) > 1 else label, series(records, name), place)
            for place, name in enumerate(known)
        ]
        if lines:
            title = f"{records.stage}: {label} by step"
            yield {"chart": line_chart(lines, title=title, x_label="step", y_label=label), "text": text}
