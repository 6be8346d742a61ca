"""The data of a report → one HTML file: no script, no request to anywhere, light or dark as the reader's system is."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data_pipeline.text.counted import counted
from trainer.evaluation.naming.metric_names import INCEPTION, network_name, title
from trainer.evaluation.naming.number_names import value_text
from trainer.records.goodput import CAUSES, goodput
from trainer.report.charts import COLOURS, column_chart, number, stacked_bar
from trainer.report.data import Evaluation, ReportData, StageRecords
from trainer.report.generator import held_out_tokens
from trainer.report.held_out import held_out
from trainer.report.named_numbers import link_to, number_groups
from trainer.report.nearest_training import nearest_training
from trainer.report.sweeps import sweep_section
from trainer.report.tokens import baselines, positions, shared
from trainer.report.training import training

_HEADLINES = frozenset({"fid", "inception_score"})
"""Of the published Inception: shown at the top."""
_MOST_CLASSES, _EXTREME_CLASSES = 20, 10
"""Classes that are all shown; of more, how many of the best and of the worst."""


def build_report(data: ReportData) -> str:
    """The whole page. Whatever comes from the run is escaped."""
    evaluation = data.evaluation
    return render(
        "page.html",
        data=data,
        evaluation=evaluation,
        headlines=_headlines(evaluation, data),
        number_groups=number_groups(evaluation.numbers),
        near=nearest_training(evaluation),
        nearest=data_uri(data.nearest_png),
        sweeps=[sweep_section(points) for points in data.sweeps],
        prefix_rows=_prefix_rows(data),
        prefix_chart=_prefix_chart(data),
        training=[training(records) for records in data.records if len(records.steps)],
        use=_codebook_use(data),
        looks=[(each.stage, found) for each in data.records if (found := held_out(each, evaluation, data.film))],
        token_looks=[(each.stage, found) for each in data.records if (found := held_out_tokens(each, data.film))],
        baselines=baselines(evaluation),
        mean_image=number(evaluation.baselines.mean_image) if evaluation.baselines else None,
        positions=positions(evaluation, fold_names(evaluation)),
        shared=shared(evaluation, fold_names(evaluation)),
        probe=[(name, percent(share)) for name, share in evaluation.probe.items()],
        classes=_classes(evaluation),
        stages=_stages(data),
        spent=_spent(data),
        causes=[cause.replace("_", " ") for cause in CAUSES],
        stage_bar=stacked_bar(
            [(f"{s.stage}: {duration(s.seconds)}", s.seconds) for s in data.stages], title="Time of each stage"
        ),
        total=duration(data.seconds),
        sampling=flatten(evaluation.sampling),
        drawn=flatten(data.samples.sampling) if data.samples else [],
        fingerprints=flatten(evaluation.fingerprints),
        given=flatten(evaluation.inputs),
        reconstructions=data_uri(data.reconstructions_png),
        samples=data_uri(data.samples.png if data.samples else None),
    )


def render(template: str, **values: Any) -> str:
    """A template of this folder with the pages' style. All values but `Markup` are escaped."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((folder / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - the project's own file
    return environment.get_template(template).render(style=style, **values)


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 12 s, 13 min 42 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent; a dash for none."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f} %"


def flatten(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as rows of dotted name and value."""
    rows: list[tuple[str, str]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", "all" if value is None else str(value)))
    return rows


def fold_names(evaluation: Evaluation) -> list[str]:
    """What the folds of the tokens are called, where that is known."""
    folds, names = len(evaluation.codebook_use), evaluation.fold_names
    return list(names) if len(names) == folds else [f"fold {number + 1}" for number in range(folds)]


def _headlines(evaluation: Evaluation, data: ReportData) -> list[dict[str, str]]:
    finest = " / ".join(percent(branch[-1], 0) for branch in evaluation.codebook_use if branch)
    folds = ", ".join(fold_names(evaluation))
    cards = [
        ("Samples of the asked class", percent(evaluation.class_accuracy),
         f"of {evaluation.samples:,} samples, judged by a classifier that was trained on real images only",
         _link(evaluation, "samples", "class_accuracy", evaluation.class_accuracy)),
        ("The same classifier on real images", percent(evaluation.judge_accuracy_on_real),
         f"of {evaluation.real}: what samples can be measured against",
         _link(evaluation, "images", "class_accuracy_of_real_images", evaluation.judge_accuracy_on_real)),
        ("Fréchet distance of samples", number(evaluation.generation_distance), "in the teacher's feature space",
         _link(evaluation, "samples", "frechet_distance", evaluation.generation_distance)),
        ("Fréchet distance of reconstructions", number(evaluation.reconstruction_distance),
         "in the teacher's feature space",
         _link(evaluation, "reconstructions", "frechet_distance", evaluation.reconstruction_distance)),
        *_published(evaluation),
        ("Codes used in the last group", finest or "–", f"by fold: {folds}", ""),
        ("Time of all stages", duration(data.seconds) if data.stages else "–", "from raw images to this page", ""),
    ]  # fmt: skip
    return [dict(zip(("name", "value", "note", "link"), card, strict=True)) for card in cards]


def _published(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """FID of samples and of reconstructions, and the Inception score, where they were measured."""
    found = []
    for each in evaluation.numbers:
        if each.metric in _HEADLINES and network_name(each) == INCEPTION:
            link = _link(evaluation, each.pictures, each.metric, each.value)
            found.append((title(each), value_text(each), f"of {counted(each.images, each.pictures[:-1])}", link))
    return found


def _link(evaluation: Evaluation, pictures: str, metric: str, value: float | None) -> str:
    return link_to(evaluation.numbers, pictures, metric, value)


def _group_sizes(data: ReportData, count: int) -> list[str]:
    """Positions of each group, where they are known."""
    groups = data.evaluation.groups
    return [f"{positions:,}" for positions in groups] if len(groups) == count else ["–"] * count


def _prefixes(data: ReportData) -> list[str]:
    """Positions that were kept for each error, where they are known."""
    prefixes, errors = data.evaluation.prefixes, data.evaluation.mse_of_prefixes
    return [f"{keep:,}" for keep in prefixes] if len(prefixes) == len(errors) else ["–"] * len(errors)


def _prefix_rows(data: ReportData) -> list[dict[str, str]]:
    rows, before = [], None
    evaluation = data.evaluation
    beside = {"psnr": evaluation.psnr_of_prefixes, "ssim": evaluation.ssim_of_prefixes}
    for place, (keep, error) in enumerate(zip(_prefixes(data), evaluation.mse_of_prefixes, strict=True)):
        change = "" if not before else f"{100 * (error - before) / before:+.1f} %".replace("-", "−")
        shown = f"{error:.4f}" if math.isfinite(error) else "–"
        more = {name: number(values[place]) if place < len(values) else "–" for name, values in beside.items()}
        rows.append({"positions": keep, "error": shown, "change": change} | more)
        before = error
    return rows


def _prefix_chart(data: ReportData) -> Markup:
    labels = _prefixes(data)
    title = "Reconstruction error by positions that are kept"
    errors = data.evaluation.mse_of_prefixes
    return column_chart(labels, errors, title=title, x_label="positions kept", y_label="mean squared error")


def _codebook_use(data: ReportData) -> dict[str, Any]:
    shares = data.evaluation.codebook_use
    groups = max((len(fold) for fold in shares), default=0)
    codes = data.evaluation.vocabularies
    sizes = codes if len(codes) == len(shares) else (0,) * len(shares)
    rows = [
        {
            "fold": name,
            "cells": [
                {"share": _width(share), "percent": percent(share, 0),
                 "codes": f"{round(share * size):,}" if size and math.isfinite(share) else ""}
                for share in branch
            ],
        }
        for name, branch, size in zip(fold_names(data.evaluation), shares, sizes, strict=True)
    ]  # fmt: skip
    return {"groups": _group_sizes(data, groups), "rows": rows}


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Lists of classes with their accuracy: all of them, or of many the best and the worst."""
    shares = evaluation.class_accuracy_per_class
    names = evaluation.class_names
    if len(names) != len(shares):
        names = tuple(str(i) for i in range(len(shares)))
    rows = list(zip(names, shares, strict=True))
    if len(rows) <= _MOST_CLASSES:
        return [{"heading": "", "rows": _class_rows(rows)}] if rows else []
    known = sorted((row for row in rows if row[1] is not None), key=lambda row: row[1] or 0.0)
    count = min(_EXTREME_CLASSES, len(known))
    return [
        {"heading": f"The {count} best of {len(rows):,} classes", "rows": _class_rows(known[::-1][:count])},
        {"heading": f"The {count} worst", "rows": _class_rows(known[:count])},
    ]


def _class_rows(rows: Sequence[tuple[str, float | None]]) -> list[dict[str, Any]]:
    return [{"name": name, "share": _width(share or 0.0), "percent": percent(share, 0)} for name, share in rows]


def _width(share: float) -> float:
    """A share as CSS takes it: in [0, 1], 0 for what is no number."""
    return round(min(max(share, 0.0), 1.0), 4) if math.isfinite(share) else 0.0


def _stages(data: ReportData) -> list[dict[str, str]]:
    records = {record.stage: record for record in data.records}
    rows = []
    for i, stage in enumerate(data.stages):
        trained = records.get(stage.stage.removeprefix("train-"), StageRecords(stage.stage))
        rate = stage.items / stage.seconds if stage.seconds else math.inf
        rates = trained.numbers("samples_per_second")
        rows.append(
            {
                "colour": str(i % COLOURS),
                "name": stage.stage,
                "time": duration(stage.seconds),
                "share": percent(stage.seconds / data.seconds if data.seconds else 0.0, 0),
                "first_step": "" if trained.until_first_step is None else duration(trained.until_first_step),
                "work": f"{stage.items:,} {stage.unit}",
                "rate": f"{number(rate)} {stage.unit}/s",
                "training_rate": f"{number(float(np.median(rates)))} samples/s" if len(rates) else "",
                "restarts": str(trained.count("resume")) if trained.events else "",
                "skipped": str(trained.count("skipped_step")) if trained.events else "",
            }
        )
    return rows


def _spent(data: ReportData) -> list[dict[str, Any]]:
    """Of each training stage, the share of its wall time that each cause took, if it left an account."""
    rows = []
    for records in data.records:
        account = goodput(records.events, records.metrics)
        if account and account.wall:
            shares = [percent(account.shares[cause]) if account.seconds[cause] else "" for cause in CAUSES]
            rows.append({"stage": records.stage, "wall": duration(account.wall), "shares": shares})
    return rows


def data_uri(png: bytes | None) -> str | None:
    """A picture that stands in the page itself."""
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode()
